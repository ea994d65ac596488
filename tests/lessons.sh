#!/bin/sh
# What the lessons quote stands in the source, and what they show of a command is what it prints.
#   lessons.sh TAPIR SOURCE            that this script notices a wrong lesson, and the list of lessons
#   lessons.sh TAPIR SOURCE 05         checks lesson 05
#   lessons.sh TAPIR SOURCE 05 write   … and writes the quotes and outputs into it as they are now
# In a lesson
#   <!-- quote FILE NAME -->   the block below is what FILE has between "lesson: NAME" and "end"
#   ```sh                      is run, in a folder that looks like the project's, and must succeed
#   ```text                    below it: what it prints. A line … stands for any lines
#   ```text ~20%               … where numbers may be off by 20 %
#   ```text ~                  … where numbers may be any
# and blocks without a word are neither.
set -eu
tapir=$1 src=$(cd "$2" && pwd) number=${3:-} mode=${4:-check}
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
export LC_ALL=C

# A folder like the project's, in which commands may write.
project() { # FOLDER
    mkdir "$1"
    for entry in "$src"/*; do
        case ${entry##*/} in build* | runs) ;; *) ln -s "$entry" "$1/" ;; esac
    done
    ln -s "$(cd "$(dirname "$tapir")" && pwd)" "$1/build"
}

# The lesson with its quotes as the source has them and, where FOLDER/N.got is, the N-th output as
# that file has it, on stdout; FOLDER gets N.sh, N.out and N.tolerance for every command.
read_lesson() { # LESSON FOLDER
    awk -v src="$src" -v to="$2" '
    function fail(what) { print FILENAME ":" FNR ": " what >"/dev/stderr"; bad = 1; exit 1 }
    function quote(file, name,   line, on, found, here) {
        file = src "/" file
        while ((getline line <file) > 0) {
            here = line ~ "(/\\*|#|//) lesson: " name "( \\*/)?$"
            if (here && found++) fail(name " stands twice in " file)
            if (on && line ~ /^ *(\/\* end \*\/|# end|\/\/ end)$/) on = 0
            else if (on && line !~ /^ *(\/\*|#|\/\/) lesson: /) print line
            if (here) on = 1
        }
        close(file)
        if (!found || on) fail(file (found ? " has no end of " : " has no lesson: ") name)
    }
    function output(   line, got) {
        got = to "/" n ".got"
        if (whole && (getline line <got) > 0) {
            do print line; while ((getline line <got) > 0)
            close(got)
            return
        }
        printf "%s", held
    }
    fence { # inside a block
        if (/^```/) {
            if (fence == "text") output()
            if (fence != "quote") close(to "/" n (fence == "sh" ? ".sh" : ".out"))
            fence = ""
            print
        } else if (fence == "sh") { print >(to "/" n ".sh"); print }
        else if (fence == "text") {
            print >(to "/" n ".out")
            if ($0 == "…") whole = 0
            held = held $0 "\n"
        } else if (fence == "other") print
        next
    }
    /^ +```/ { fail("a block that is indented would not be checked") }
    wanted && !/^```/ { fail("a block must follow the quote") }
    wanted { print; quote(wanted, name); wanted = ""; fence = "quote"; next }
    /^<!-- quote [^ ]+ .+ -->$/ {
        wanted = $3
        name = substr($0, index($0, $3) + length($3) + 1)
        sub(/ -->$/, "", name)
    }
    /^<!-- quote/ && !wanted { fail("a quote is written <!-- quote FILE NAME -->") }
    /^```sh$/ { fence = "sh"; n++; open = 1; printf "" >(to "/" n ".sh") }
    /^```text( ~([0-9]+%)?)?$/ {
        if (!open) fail("output of which command?")
        open = 0; whole = 1; held = ""
        fence = "text"
        printf "" >(to "/" n ".out")
        print $2 >(to "/" n ".tolerance")
        close(to "/" n ".tolerance")
    }
    /^```/ && !fence { fence = "other" }
    { print }
    END { if (!bad && fence) fail("a block without an end") }' "$1"
}

# Whether GOT is what EXPECTED says. The first line that is missing goes to stdout.
agrees() { # EXPECTED GOT TOLERANCE
    awk -v got="$2" -v tolerance="$3" '
    function near(a, b,   d, m) {
        if (tolerance == "~") return 1
        d = a > b ? a - b : b - a
        m = a < 0 ? -a : a
        if (b > m) m = b
        if (-b > m) m = -b
        return d <= m * (substr(tolerance, 2) + 0) / 100
    }
    function same(a, b,   na, nb, va, vb) {
        sub(/ +$/, "", a); sub(/ +$/, "", b)
        if (tolerance == "") return a == b
        gsub(/[ \t]+/, " ", a); gsub(/[ \t]+/, " ", b)
        sub(/^ /, "", a); sub(/^ /, "", b)
        for (;;) { # the words between numbers, then the numbers
            na = match(a, /[-+]?[0-9]+(\.[0-9]*)?(e[-+]?[0-9]+)?/); va = substr(a, RSTART, RLENGTH)
            pa = na ? substr(a, 1, na - 1) : a; a = na ? substr(a, na + RLENGTH) : ""
            nb = match(b, /[-+]?[0-9]+(\.[0-9]*)?(e[-+]?[0-9]+)?/); vb = substr(b, RSTART, RLENGTH)
            pb = nb ? substr(b, 1, nb - 1) : b; b = nb ? substr(b, nb + RLENGTH) : ""
            if (pa != pb || !na != !nb) return 0
            if (!na) return 1
            if (!near(va + 0, vb + 0)) return 0
        }
    }
    BEGIN { while ((getline line <got) > 0) have[++n] = line; at = 1 }
    $0 == "…" { any = 1; next }
    {
        while (any && at <= n && !same($0, have[at])) at++
        if (at > n || !same($0, have[at])) { print "  wanted: " $0; print "  got:    " have[at]; bad = 1; exit 1 }
        at++; any = 0
    }
    END {
        if (bad) exit 1
        if (!any && at <= n) { print "  not expected: " have[at]; exit 1 }
    }' "$1"
}

# A lesson's quotes, then its commands in order, in one shell as in a reader's terminal. FOLDER is
# the project's.
check() { # LESSON FOLDER
    pieces=$(mktemp -d "$tmp/pieces.XXXX")
    read_lesson "$1" "$pieces" >"$pieces/lesson" || return 1
    if [ "$mode" = check ] && ! cmp -s "$pieces/lesson" "$1"; then
        echo "${1##*/}: a quote is not what the source says (lessons.sh … write puts it right)"
        diff "$1" "$pieces/lesson" | head -n 6
        return 1
    fi
    ok=yes
    (cd "$2" && sh -ec 'piece=1
        while [ -e "$0/$piece.sh" ]; do
            . "$0/$piece.sh" >"$0/$piece.got" 2>&1
            piece=$((piece + 1))
        done' "$pieces") </dev/null || ok=no
    commands=$(ls "$pieces" | grep -c 'got$' || :)
    if [ $ok = no ]; then
        echo "${1##*/}: this fails:"
        cat "$pieces/$commands.sh"
        tail -n 5 "$pieces/$commands.got"
        return 1
    fi
    if [ "$mode" = write ]; then
        read_lesson "$1" "$pieces" >"$pieces/lesson" && cat "$pieces/lesson" >"$1"
        return
    fi
    for n in $(seq 1 "$commands"); do
        [ -e "$pieces/$n.out" ] || continue
        tolerance=$(cat "$pieces/$n.tolerance")
        if ! agrees "$pieces/$n.out" "$pieces/$n.got" "$tolerance" >"$pieces/why"; then
            echo "${1##*/}: another output than it shows, of"
            cat "$pieces/$n.sh" "$pieces/why"
            return 1
        fi
        sed '$s/$/x/' "$pieces/$n.out" >"$pieces/mutant"
        printf 'one line more\n' >>"$pieces/mutant"
        if agrees "$pieces/mutant" "$pieces/$n.got" "$tolerance" >"$pieces/why"; then
            echo "${1##*/}: a wrong output would not be noticed, of"
            cat "$pieces/$n.sh"
            return 1
        fi
    done
}

if [ -n "$number" ] && [ "$number" != short ]; then
    lesson=$(ls "$src/docs/lessons/$number"-*.md)
    project "$tmp/project"
    check "$lesson" "$tmp/project" || exit 1
    echo "${lesson##*/}: $(grep -c '^<!-- quote' "$lesson") quotes, $commands commands"
    exit 0
fi

# ---- does this script notice? -------------------------------------------------------------------
failed=0
mkdir "$tmp/src" "$tmp/empty"
cat >"$tmp/src/code.c" <<'END'
int before;
/* lesson: first */
/* lesson: both of them */
int a;
    int b;
/* end */
END
cat >"$tmp/good.md" <<'END'
<!-- quote code.c both of them -->
```c
int a;
    int b;
```
```sh
echo one 1.00
echo two
echo three
```
```text
one 1.00
…
three
```
```sh
echo it took 105 ms
```
```text ~10%
it took 100   ms
```
```sh
echo left
echo 12 s left
```
```text ~
left
8 s left
```
END
src=$tmp/src
check "$tmp/good.md" "$tmp/empty" || { echo "FAILED: a good lesson is refused"; failed=1; }
notices() { # WHAT SED-SCRIPT
    sed "$2" "$tmp/good.md" >"$tmp/bad.md"
    cmp -s "$tmp/good.md" "$tmp/bad.md" && { echo "FAILED: no mutant: $1"; failed=1; }
    if (check "$tmp/bad.md" "$tmp/empty") >/dev/null 2>&1; then
        echo "FAILED: not noticed: $1"
        failed=1
    fi
}
notices "a changed quote" 's/^int a;$/int aa;/'
notices "a quote that is not there" 's/ both of them -->/ neither -->/'
notices "a file that is not there" 's/ code.c / nocode.c /'
notices "a changed output" 's/^three$/four/'
notices "a line less" '/^left$/d'
notices "another digit" 's/^one 1.00$/one 1.01/'
notices "a number beyond the tolerance" 's/took 100 /took 130 /'
notices "other words beside a number that may be any" 's/^8 s left/8 ms left/'
notices "a command that fails" 's/^echo two$/false/'
notices "an output without a command" '/^```sh$/,/^```$/d'
notices "an indented block" 's/^```sh$/ ```sh/'
notices "a quote that is not written as one" "s/quote code.c/quotes code.c/"
notices "a quote without a name" "s/ both of them -->/ -->/"
mode=write
sed 's/^int a;$/int c;/; s/took 100 /took 200 /' "$tmp/good.md" >"$tmp/bad.md"
check "$tmp/bad.md" "$tmp/empty"
mode=check
check "$tmp/bad.md" "$tmp/empty" || { echo "FAILED: what was written is refused"; failed=1; }

# ---- the list -----------------------------------------------------------------------------------
cd "$2/docs/lessons"
for lesson in [0-9][0-9]-*.md; do
    grep -q "]($lesson)" README.md || { echo "FAILED: README.md does not name $lesson"; failed=1; }
done
for name in $(grep -o '](\([0-9a-z-]*\.md\))' README.md | tr -d '()]'); do
    [ -e "$name" ] || { echo "FAILED: README.md names $name, which is not there"; failed=1; }
done
exit $failed
