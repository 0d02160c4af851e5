# What stands on the line before the word, read with the tables above. Nothing of the line is ever evaluated.

# Take the quotes and backslashes off a word, and put in what "~" or a variable at its beginning stand for; sets REPLY,
# and `quote` to the quote that is still open.
_vbackup_unquoted() {
    local text=$1 plain='' char
    quote=''
    if [[ $text == '~' || $text == '~/'* ]]; then
        text=$HOME${text#'~'}
    elif [[ $text =~ ^\"?\$\{?([A-Za-z_][A-Za-z0-9_]*)\}?\"?(/.*)?$ ]]; then
        text=${!BASH_REMATCH[1]-}${BASH_REMATCH[2]}
    fi
    if [[ $text != *[\'\"\\]* ]]; then
        REPLY=$text
        return
    fi
    while [[ -n $text ]]; do
        char=${text:0:1} text=${text:1}
        case $quote$char in
            "''" | '""') quote='' ;;
            "'"?) plain+=$char ;;
            '"\')
                [[ $text == [\"\\\$\`]* ]] || plain+=$char
                plain+=${text:0:1} text=${text:1}
                ;;
            '"'?) plain+=$char ;;
            "'" | '"') quote=$char ;;
            '\') plain+=${text:0:1} text=${text:1} ;;
            *) plain+=$char ;;
        esac
    done
    REPLY=$plain
}

# Quote a value as it has to stand on the line, within the quote that the word has begun with; sets REPLY.
_vbackup_quoted() {
    local value=$1 quote=$2
    case $quote in
        "'") REPLY=${value//\'/\'\\\'\'} ;;
        '"') REPLY=${value//[\"\\\$\`]/\\&} ;;
        *) printf -v REPLY %q "$value" ;;
    esac
}

# Note what a word says that other words depend on.
_vbackup_note() {
    local option=$1 kinds=$2 word=$3
    case $option in
        -r | --repository) repository=(--repository="$word") ;;
        -c | --connect) uris+=(--connect="$word") ;;
        --domain) domain=(--domain="$word") ;;
        --backup) backup=(--backup="$word") ;;
        --config) config=(--config="$word") ;;
        -*) [[ $kinds != *place* ]] || place=(--repository="$word") ;;
        *)
            case " $kinds " in
                *' backups '*)
                    if [[ $word == [0-9]*T*Z-* ]]; then
                        backup=(--backup="$word")
                    elif [[ $kinds == *domains* ]]; then
                        domain=(--domain="$word")
                    fi
                    ;;
                *domains*) domain=(--domain="$word") ;;
            esac
            ;;
    esac
}

# Put what a word can be into COMPREPLY. $1: kinds; $2: what the word begins with; $3: words that are there already.
_vbackup_offer() {
    local kinds=$1 begin=$2 there=$3 kind values=() asked=()
    for kind in $kinds; do
        case $kind in
            =*) values+=("${kind#=}") ;;
            files) compopt -o default 2> /dev/null ;;
            directories | place) compopt -o plusdirs 2> /dev/null ;;
            *) asked+=("$kind") ;;
        esac
    done
    if ((${#asked[@]})); then
        local program=vbackup said=()
        [[ -z $(type -t -- "$called") ]] || program=$called
        ((${#place[@]})) || place=("${repository[@]}")
        # Whatever goes wrong there is no matter of the line that is being typed.
        mapfile -t said < <("$program" completion values "${asked[@]}" "${place[@]}" "${uris[@]}" "${domain[@]}" \
            "${backup[@]}" "${config[@]}" < /dev/null 2> /dev/null)
        values+=("${said[@]}")
    fi
    local value
    for value in "${values[@]}"; do
        if [[ $value == "$begin"* && $there != *$'\n'"$value"$'\n'* ]]; then
            COMPREPLY+=("$value")
        fi
    done
}

_vbackup() {
    COMPREPLY=()
    local called=$1 line=${COMP_LINE:0:COMP_POINT}
    local -a words=() raw=()
    local REPLY quote word index gap begun=''
    # Readline splits words at ":" and "=" too. Together they are what the shell takes for a word: without a blank
    # between them on the line.
    for ((index = 0; index <= COMP_CWORD; index++)); do
        word=${COMP_WORDS[index]}
        gap=${line%%[![:space:]]*}
        line=${line#"$gap"}
        if ((index == 0)) || [[ -n $gap ]]; then
            raw+=('')
            begun=''
        fi
        ((index < COMP_CWORD)) || word=$line
        raw[${#raw[@]} - 1]+=$word
        line=${line#"$word"}
    done
    local typed=${raw[${#raw[@]} - 1]}
    unset "raw[${#raw[@]} - 1]"

    local path='' pending='' takes='' values='' plain='' given=0 there=$'\n' used=' '
    local -a repository=() uris=() domain=() backup=() config=() place=()
    local -a below=() switches=() arguments=() groups=()
    local repeats='' repeated=''
    _vbackup_command ''
    for word in "${raw[@]:1}"; do
        _vbackup_unquoted "$word"
        word=$REPLY
        if [[ $takes == one || -n $takes && $word != -* ]]; then
            _vbackup_note "$pending" "$values" "$word"
            there+=$word$'\n'
            [[ $takes == many ]] || takes=''
            continue
        fi
        takes=''
        if [[ -n $plain || $word != -?* ]]; then
            if ((${#below[@]})); then
                path=${path:+$path }$word used=' '
                _vbackup_command "$path" || return 0
            else
                index=$((given < ${#arguments[@]} ? given : ${#arguments[@]} - 1))
                ((index < 0)) || _vbackup_note '' "${arguments[index]}" "$word"
                given=$((given + 1))
                there+=$word$'\n'
            fi
            continue
        fi
        case $word in
            --) plain=1 ;;
            --*=*)
                pending=${word%%=*}
                used+="$pending "
                _vbackup_takes "$path" "$pending"
                _vbackup_note "$pending" "$values" "${word#*=}"
                takes=''
                ;;
            --*)
                pending=$word there=$'\n'
                used+="$pending "
                _vbackup_takes "$path" "$pending"
                ;;
            *)
                word=${word#-} there=$'\n'
                while [[ -n $word ]]; do
                    pending=-${word:0:1} word=${word:1}
                    used+="$pending "
                    _vbackup_takes "$path" "$pending"
                    if [[ -n $takes && -n $word ]]; then
                        _vbackup_note "$pending" "$values" "$word"
                        takes='' word=''
                    fi
                done
                ;;
        esac
    done

    _vbackup_unquoted "$typed"
    local begin=$REPLY prefix=''
    # Readline would take what follows the quote for the word.
    [[ -z $quote || $typed == "$quote"* ]] || return 0
    if [[ $takes == one || -n $takes && $begin != -* ]]; then
        _vbackup_offer "$values" "$begin" "$there"
    elif [[ -z $plain && $begin == --*=* ]]; then
        prefix=${begin%%=*}=
        _vbackup_takes "$path" "${prefix%=}"
        _vbackup_offer "$values" "${begin#*=}" ''
    elif [[ -z $plain && $begin == -* ]]; then
        _vbackup_options "$begin"
    elif ((${#below[@]})); then
        _vbackup_offer "${below[*]/#/=}" "$begin" ''
    else
        # A domain that an option names is not the first word.
        if ((${#domain[@]} && given == 0)) && [[ ${arguments[0]-} == *domains && -z $repeats ]]; then
            arguments=("${arguments[@]:1}")
        fi
        if ((given < ${#arguments[@]})); then
            values=${arguments[given]}
        elif [[ -n $repeats ]]; then
            values=${arguments[${#arguments[@]} - 1]}
        else
            values=''
            [[ -n $plain || -n $begin ]] || _vbackup_options ''
        fi
        _vbackup_offer "$values" "$begin" "$there"
    fi

    # Readline puts a reply in the place of what follows the last ":" or "=" of the word.
    local after=''
    if [[ -z $quote && $typed == *[:=]* ]]; then
        after=${typed%"${typed##*[:=]}"}
        [[ -z $prefix ]] || after=${after#"$prefix"}
    fi
    for index in "${!COMPREPLY[@]}"; do
        _vbackup_quoted "${COMPREPLY[index]}" "$quote"
        COMPREPLY[index]=${REPLY#"$after"}
    done
}

# Offer the options that may still be given.
_vbackup_options() {
    local option group
    for option in "${switches[@]}"; do
        [[ $option == "$1"* ]] || continue
        if [[ $used == *" $option "* && $repeated != *" $option "* ]]; then
            continue
        fi
        for group in "${groups[@]}"; do
            [[ $group == *" $option "* ]] || continue
            local other
            for other in $group; do
                [[ $used != *" $other "* ]] || continue 3
            done
        done
        COMPREPLY+=("$option")
    done
}

complete -o nosort -F _vbackup vbackup
