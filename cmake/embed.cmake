# cmake -DOUT=file.c -DNAME=array -DIN=file -P cmake/embed.cmake: the file as `const char array[]` of
# C, with a zero at the end.
file(READ ${IN} bytes HEX)
string(REGEX REPLACE "(..)" "'\\\\x\\1'," bytes "${bytes}")
string(REPLACE "'\\x0a'," "'\\n',\n" bytes "${bytes}")
file(WRITE ${OUT} "/* Written by cmake/embed.cmake. */\nextern const char ${NAME}[];\nconst char ${NAME}[] = {\n${bytes}0};\n")
