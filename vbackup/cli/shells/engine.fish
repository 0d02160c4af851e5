# What stands on the line before the word, read with the tables above. Nothing of the line is ever evaluated.

# Note what a word says that other words depend on; $argv: option, kinds, word.
function __vbackup_note --no-scope-shadowing
    switch "$argv[1]"
        case -r --repository
            set repository --repository="$argv[3]"
        case -c --connect
            set -a uris --connect="$argv[3]"
        case --domain
            set domain --domain="$argv[3]"
        case --backup
            set backup --backup="$argv[3]"
        case --config
            set config --config="$argv[3]"
        case '-*'
            string match -q -- '*place*' "$argv[2]"; and set place --repository="$argv[3]"
        case '*'
            if string match -q -- '* backups *' " $argv[2] "; and string match -qr '^[0-9]{8}T[0-9]*Z-' -- "$argv[3]"
                set backup --backup="$argv[3]"
            else if string match -q -- '*domains*' "$argv[2]"
                set domain --domain="$argv[3]"
            end
    end
end

# Print what a word can be, after the beginning of a word; $argv: kinds, that beginning, what the word begins with, and
# words that are there already.
function __vbackup_offer --no-scope-shadowing
    set -l asked
    for kind in (string split -n ' ' -- "$argv[1]")
        switch $kind
            case '=*'
                echo -- $argv[2](string sub -s 2 -- $kind)
            case files
                string replace -r -- '^' "$argv[2]" (__fish_complete_path $argv[3])
            case directories place
                string replace -r -- '^' "$argv[2]" (__fish_complete_directories $argv[3] '')
            case '*'
                set -a asked $kind
        end
    end
    if set -q asked[1]
        set -l program vbackup
        type -q -- $called; and set program $called
        set -q place[1]; or set place $repository
        # Whatever goes wrong there is no matter of the line that is being typed.
        for value in ($program completion values $asked $place $uris $domain $backup $config </dev/null 2>/dev/null)
            contains -- $value $argv[4..-1]; or echo -- $argv[2]$value
        end
    end
end

# Print the options that may still be given.
function __vbackup_options --no-scope-shadowing
    for option in $switches
        set -l name (string split -f 1 \t -- $option)
        contains -- $name $used; and not string match -q -- "* $name *" "$repeated"; and continue
        set -l is_left 1
        for group in $groups
            string match -q -- "* $name *" $group; or continue
            for other in (string split -n ' ' -- $group)
                contains -- $other $used; and set is_left
            end
        end
        set -q is_left[1]; and echo -- $option
    end
end

function __vbackup_complete
    set -l line (commandline -opc)
    set -l begin (commandline -ct)
    set -l path ''
    set -l pending ''
    set -l takes
    set -l values
    set -l plain
    set -l used
    set -l repeated
    set -l repeats
    set -l repository
    set -l uris
    set -l domain
    set -l backup
    set -l config
    set -l place
    set -l below
    set -l switches
    set -l arguments
    set -l groups
    set -l there
    set -l given 0
    # Variables that are set for this command alone.
    while string match -qr '^\w+=' -- "$line[1]"
        string match -q 'VBACKUP_REPOSITORY=*' -- $line[1]
        and set repository --repository=(string replace VBACKUP_REPOSITORY= '' -- $line[1])
        set -e line[1]
    end
    set -l called $line[1]
    __vbackup_command ''
    for word in $line[2..-1]
        string match -qr '^~(/|$)' -- $word; and set word $HOME(string sub -s 2 -- $word)
        set -l variable (string match -r '^\$\{?(\w+)\}?(/.*)?$' -- $word)
        and set -q $variable[2]; and set word $$variable[2]$variable[3]
        if test "$takes" = one; or begin test -n "$takes"; and not string match -q -- '-*' $word; end
            __vbackup_note $pending "$values" $word
            set -a there $word
            test "$takes" = many; or set takes
            continue
        end
        set takes
        if test -n "$plain"; or not string match -q -- '-?*' $word
            if set -q below[1]
                set path (string trim -- "$path $word")
                set used
                __vbackup_command $path; or return
            else
                set given (math $given + 1)
                if set -q arguments[1]
                    set -l index (math "min($given, "(count $arguments)")")
                    __vbackup_note '' "$arguments[$index]" $word
                end
                set -a there $word
            end
            continue
        end
        switch $word
            case --
                set plain 1
            case '--*=*'
                set pending (string split -m 1 -f 1 = -- $word)
                set -a used $pending
                __vbackup_takes $path $pending
                __vbackup_note $pending "$values" (string split -m 1 -f 2 = -- $word)
                set takes
            case '--*'
                set pending $word
                set -a used $pending
                set there
                __vbackup_takes $path $pending
            case '*'
                set -l letters (string sub -s 2 -- $word)
                set there
                while test -n "$letters"
                    set pending -(string sub -l 1 -- $letters)
                    set letters (string sub -s 2 -- $letters)
                    set -a used $pending
                    __vbackup_takes $path $pending
                    if test -n "$takes" -a -n "$letters"
                        __vbackup_note $pending "$values" $letters
                        set takes
                        set letters
                    end
                end
        end
    end

    if test "$takes" = one; or begin test -n "$takes"; and not string match -q -- '-*' $begin; end
        __vbackup_offer "$values" '' $begin $there
    else if test -z "$plain"; and string match -q -- '--*=*' $begin
        set -l name (string split -m 1 -f 1 = -- $begin)
        __vbackup_takes $path $name
        __vbackup_offer "$values" $name= (string split -m 1 -f 2 = -- $begin)
    else if test -z "$plain"; and string match -q -- '-*' $begin
        __vbackup_options
    else if set -q below[1]
        printf '%s\n' $below
    else
        # A domain that an option names is not the first word.
        if set -q domain[1]; and test $given -eq 0 -a -z "$repeats"; and string match -q -- '*domains' "$arguments[1]"
            set -e arguments[1]
        end
        if test $given -lt (count $arguments)
            set -l index (math $given + 1)
            __vbackup_offer "$arguments[$index]" '' $begin $there
        else if test -n "$repeats"
            __vbackup_offer "$arguments[-1]" '' $begin $there
        else if test -z "$plain" -a -z "$begin"
            __vbackup_options
        end
    end
end

complete -c vbackup -e
complete -c vbackup -k -f -a '(__vbackup_complete)'
