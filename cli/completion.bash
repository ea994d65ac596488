# bash completion for tapir. It keeps no list: commands, options, config keys, their choices and the
# names of ops and tasks are what the program at hand says of itself, so they cannot go out of date.
_tapir() {
    local tapir=${COMP_WORDS[0]} line=${COMP_LINE:0:COMP_POINT} word words
    # COMP_WORDS breaks at '=', a key=value word does not
    read -ra words <<<"$line"
    [[ $line == *[[:space:]] ]] && words+=("")
    word=${words[-1]}
    local command=${words[1]-} key choices=""
    COMPREPLY=()
    if ((${#words[@]} < 3)); then
        choices=$("$tapir" --help 2>/dev/null | sed -n 's/^  \([a-z]*\) .*/\1/p')
    elif [[ $word == -*=* ]]; then # an option's value: a file, as far as anybody knows
        word=${word#*=}
    elif [[ $word == -* ]]; then
        choices=$("$tapir" "$command" --help 2>/dev/null | sed -nE 's/^  (-[^ ],|   ) (--[a-z-]+=?).*/\2/p')
    elif [[ $word == *=* ]]; then
        key=${word%%=*}
        choices=$("$tapir" train --keys 2>/dev/null | awk -v key="$key" '
            $1 == key { on = 1; next }
            on && / one of / { sub(/.* one of /, ""); sub(/, default.*/, ""); gsub(/, /, "\n"); print }
            on && / true or false/ { print "true\nfalse" }
            { on = 0 }')
        word=${word#*=}
    elif [[ $command == ops ]]; then
        choices=$("$tapir" ops 2>/dev/null | sed -n 's/^\([a-z0-9_]*\) .*/\1/p')
    elif [[ $command == task ]]; then
        choices=$("$tapir" task --list 2>/dev/null | sed -n 's/^\([a-z0-9_]*\) .*/\1/p')
    elif ((${#words[@]} > 3)) && "$tapir" "$command" --help 2>/dev/null | grep -q 'KEY=VALUE'; then
        choices=$("$tapir" train --keys 2>/dev/null | sed -n 's/^\([a-z][a-z0-9_.]*\) .*/\1=/p')
    fi
    mapfile -t COMPREPLY < <(compgen -W "$choices" -- "$word")
    if ((${#COMPREPLY[@]} == 0)); then
        mapfile -t COMPREPLY < <(compgen -f -- "$word")
        compopt -o filenames 2>/dev/null # directories get their slash
    elif [[ ${COMPREPLY[0]} == *= ]]; then
        compopt -o nospace 2>/dev/null
    fi
    return 0
}
complete -F _tapir tapir
