# What stands on the line before the word, read with the tables above. Nothing of the line is ever evaluated.

# Note what a word says that other words depend on.
_vbackup_note() {
    local option=$1 kinds=$2 word=$3
    case $option in
        -r | --repository) repository=(--repository=$word) ;;
        -c | --connect) uris+=(--connect=$word) ;;
        --domain) domain=(--domain=$word) ;;
        --backup) backup=(--backup=$word) ;;
        --config) config=(--config=$word) ;;
        -*) [[ $kinds != *place* ]] || place=(--repository=$word) ;;
        *)
            case " $kinds " in
                *' backups '*)
                    if [[ $word == [0-9]*T*Z-* ]]; then
                        backup=(--backup=$word)
                    elif [[ $kinds == *domains* ]]; then
                        domain=(--domain=$word)
                    fi
                    ;;
                *domains*) domain=(--domain=$word) ;;
            esac
            ;;
    esac
}

# Offer what a word can be. $1: kinds; the rest: words that are there already.
_vbackup_offer() {
    local kind result=1
    local -a found asked said
    for kind in ${=1}; do
        case $kind in
            '='*) found+=(${kind#=}) ;;
            files) _files && result=0 ;;
            directories | place) _directories && result=0 ;;
            *) asked+=($kind) ;;
        esac
    done
    if (($#asked)); then
        local program=vbackup
        whence -- $called > /dev/null && program=$called
        # Whatever goes wrong there is no matter of the line that is being typed.
        (($#place)) || place=($repository)
        said=(${(f)"$($program completion values $asked $place $uris $domain $backup $config < /dev/null 2> /dev/null)"})
        found+=($said)
    fi
    shift
    found=(${found:|argv})
    (($#found)) && compadd -V vbackup -a found && result=0
    return result
}

# Offer the options that may still be given.
_vbackup_options() {
    local option group other
    local -a left
    for option in $switches; do
        local name=${option%%:*}
        [[ $used == *" $name "* && $repeated != *" $name "* ]] && continue
        for group in $groups; do
            [[ $group == *" $name "* ]] || continue
            for other in ${=group}; do
                [[ $used != *" $other "* ]] || continue 3
            done
        done
        left+=($option)
    done
    # As options they would not be offered before a "-" is there.
    _describe -V ${begin:+-o} option left
}

_vbackup() {
    local called=${(Q)words[1]} path_words='' pending='' takes='' values='' plain='' used=' ' repeats='' repeated='' word
    local -a repository uris domain backup config place below switches arguments groups there
    local -i given=0 index
    _vbackup_command ''
    # A variable that is set for this command alone; $words begins after it.
    for word in "${(z)LBUFFER}"; do
        [[ $word == VBACKUP_REPOSITORY=* ]] && repository=(--repository=${(Q)word#*=})
    done
    for word in "${(@)words[2,CURRENT-1]}"; do
        if [[ $word == '~' || $word == '~/'* ]]; then
            word=$HOME${word#'~'}
        elif [[ $word == (#b)(\"|)\$(\{|)([A-Za-z_][A-Za-z0-9_]#)(\}|)(\"|)(|/*) ]]; then
            word=${(P)match[3]}$match[6]
        fi
        word=${(Q)word}
        if [[ $takes == one || ( -n $takes && $word != -* ) ]]; then
            _vbackup_note "$pending" "$values" "$word"
            there+=("$word")
            [[ $takes == many ]] || takes=''
            continue
        fi
        takes=''
        if [[ -n $plain || $word != -?* ]]; then
            if (($#below)); then
                path_words=${path_words:+$path_words }$word used=' '
                _vbackup_command "$path_words" || return 1
            else
                index=$((given < $#arguments ? given + 1 : $#arguments))
                ((index == 0)) || _vbackup_note '' "$arguments[index]" "$word"
                given+=1
                there+=("$word")
            fi
            continue
        fi
        case $word in
            --) plain=1 ;;
            --*=*)
                pending=${word%%=*}
                used+="$pending "
                _vbackup_takes "$path_words" "$pending"
                _vbackup_note "$pending" "$values" "${word#*=}"
                takes=''
                ;;
            --*)
                pending=$word there=()
                used+="$pending "
                _vbackup_takes "$path_words" "$pending"
                ;;
            *)
                word=${word#-} there=()
                while [[ -n $word ]]; do
                    pending=-${word[1]} word=${word[2,-1]}
                    used+="$pending "
                    _vbackup_takes "$path_words" "$pending"
                    if [[ -n $takes && -n $word ]]; then
                        _vbackup_note "$pending" "$values" "$word"
                        takes='' word=''
                    fi
                done
                ;;
        esac
    done

    local begin=${(Q)PREFIX}
    if [[ $takes == one || ( -n $takes && $begin != -* ) ]]; then
        _vbackup_offer "$values" $there
    elif [[ -z $plain && $begin == --*=* ]]; then
        _vbackup_takes "$path_words" "${begin%%=*}"
        compset -P '*='
        _vbackup_offer "$values"
    elif [[ -z $plain && $begin == -* ]]; then
        _vbackup_options
    elif (($#below)); then
        _describe -V command below
    else
        # A domain that an option names is not the first word.
        if (($#domain && given == 0)) && [[ ${arguments[1]-} == *domains && -z $repeats ]]; then
            shift arguments
        fi
        if ((given < $#arguments)); then
            _vbackup_offer "$arguments[given + 1]" $there
        elif [[ -n $repeats ]]; then
            _vbackup_offer "$arguments[-1]" $there
        elif [[ -z $plain && -z $begin ]]; then
            _vbackup_options
        fi
    fi
}

# Read by compinit it is the function, whose first call this is; read by "source", it registers itself.
if [[ $funcstack[1] == _vbackup ]]; then
    _vbackup "$@"
else
    compdef _vbackup vbackup
fi
