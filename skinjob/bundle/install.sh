#!/bin/sh
# Installs skinjob from this folder, without internet: sh install.sh [--prefix DIR] [--python EXE]
#   --prefix DIR   where to install; default: the folder skinjob beside this one
#   --python EXE   the Python to use; default: the bundle's own, or the first on PATH that fits
# Everything is checked before anything is written. An earlier version stays until you remove it.
set -u
unset PYTHONPATH PYTHONHOME PYTHONSTARTUP PYTHONPYCACHEPREFIX
export PYTHONNOUSERSITE=1 PIP_CONFIG_FILE=/dev/null # pip's --isolated still reads the site's file

fail() {
    printf 'error: %s\nfix:   %s\n' "$1" "$2" >&2
    exit 1
}

quoted() { # a path for a shell
    case $1 in
    *[!A-Za-z0-9_./~+=-]*) printf "'%s'" "$(printf %s "$1" | sed "s/'/'\\\\''/g")" ;;
    *) printf %s "$1" ;;
    esac
}

about() { sed -n "s/^$1 //p" "$bundle/BUNDLE.txt"; }

bundle=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd -P) || exit 1
prefix=$(dirname -- "$bundle")/skinjob
asked=
while [ $# -gt 0 ]; do
    case $1 in
    --prefix=*) prefix=${1#*=} ;;
    --python=*) asked=${1#*=} ;;
    --prefix | --python)
        [ $# -gt 1 ] || { fail "$1 needs a value" "sh install.sh --help"; }
        if [ "$1" = --prefix ]; then prefix=$2; else asked=$2; fi
        shift
        ;;
    -h | --help) sed -n '2,5s/^# //p' "$0"; exit 0 ;;
    *) (fail "unknown option: $1" "sh install.sh --help"); exit 2 ;;
    esac
    shift
done
case $prefix in /*) ;; *) prefix=$(pwd)/$prefix ;; esac
case $asked in /*) ;; */*) asked=$(pwd)/$asked ;; esac
again="sh $(quoted "$bundle/install.sh")"
[ "$prefix" = "$(dirname -- "$bundle")/skinjob" ] || again="$again --prefix $(quoted "$prefix")"
copy="rsync -rt --partial $(basename "$bundle") ...   # on the laptop, as before"

# --- the bundle ---------------------------------------------------------------------------------

cd -- "$bundle" || exit 1
[ -s BUNDLE.txt ] && [ -f SHA256SUMS ] || fail "$bundle: not a whole bundle: no SHA256SUMS" "$copy"
sum=$(sha256sum SHA256SUMS | cut -d' ' -f1)
id=$(about skinjob)-$(printf %s "$sum" | cut -c1-12)
version=$prefix/versions/$id
printf 'bundle  skinjob %s, torch %s, for Python %s and glibc %s\n' \
    "$(about skinjob)" "$(about torch)" "$(about python)" "$(about glibc)"
printf 'digest  %s   (`skinjob bundle` printed the same)\n' "$sum"

is_current() { [ "$(readlink "$prefix/current" 2>/dev/null)" = "versions/$id" ]; }

next_steps() {
    printf 'next:   cd %s && . current/bin/activate && skinjob init-site && skinjob doctor\n' \
        "$(quoted "$prefix")"
    for images in "$bundle"/images/*; do
        [ -f "$images" ] && printf 'images: skinjob submit --data %s\n' "$(quoted "$images")"
    done
    return 0
}

# Jobs in the queue name files in PREFIX/weights, so nothing there is replaced or removed.
keep_weights() {
    weights=$prefix/weights earlier=
    if [ "$(readlink "$weights" 2>/dev/null)" = current/weights ]; then # an earlier installer's
        earlier=$weights weights=$prefix/weights.new
    fi
    mkdir -p "$weights" || return 1
    { [ -z "$earlier" ] || keep_files "$earlier"; } && keep_files "$version/weights" || return 1
    [ -z "$earlier" ] || { rm "$earlier" && mv "$weights" "$earlier"; }
}

keep_files() { # of a folder, with their digests
    for file in "$1"/*; do
        name=${file##*/}
        [ -f "$file" ] && [ "$name" != SHA256SUMS ] || continue
        if [ -e "$weights/$name" ]; then
            cmp -s "$file" "$weights/$name" ||
                printf 'note    %s has other content, and stays; the bundle has --weights %s\n' \
                    "$(quoted "$prefix/weights/$name")" "$(quoted "$file")"
            continue
        fi
        sums=$weights/SHA256SUMS
        { # without a line of an earlier file of this name
            awk -v name="$name" 'substr($0, 67) != name' "$sums" 2>/dev/null
            awk -v name="$name" 'substr($0, 67) == name' "${file%/*}/SHA256SUMS" 2>/dev/null
        } >"$sums.part"
        mv "$sums.part" "$sums" || return 1
        ln -L "$file" "$weights/$name" 2>/dev/null && continue
        cp "$file" "$weights/$name.part" && mv "$weights/$name.part" "$weights/$name" || return 1
    done
}

switch() { # a link is replaced in one step; `mv` and `ln -f` cannot do it everywhere
    keep_weights || fail "$prefix/weights: weights cannot be put there" "ls -la $(quoted "$prefix")"
    (cd -- "$prefix" && versions/"$id"/bin/python -c '
import os, sys
os.path.lexists("current.new") and os.unlink("current.new")
os.symlink(sys.argv[1], "current.new")
os.replace("current.new", "current")
' "versions/$id") || fail "$prefix/current: cannot be switched over" "ls -l $(quoted "$prefix")"
}

if [ -e "$prefix/current" ] && [ ! -L "$prefix/current" ]; then
    fail "$prefix/current: not a link, so not an installation of skinjob" "$again --prefix ANOTHER"
fi
if [ -f "$version/BUNDLE.txt" ]; then
    "$version/bin/skinjob" --version >/dev/null 2>&1 ||
        fail "$version: installed earlier, but does not run now" "rm -r $(quoted "$version"); $again"
    if is_current; then
        printf 'installed already: %s\n' "$version"
    else
        switch
        printf 'switched back to: %s\n' "$version"
    fi
    next_steps
    exit 0
fi

bad=
for name in $(sed 's/^[^ ]*  //' SHA256SUMS); do # no name has a space
    [ -f "$name" ] || { printf '%s: is missing\n' "$name"; bad="${bad:-$name: is missing}"; }
done
failed=$(LC_ALL=C sha256sum -c SHA256SUMS 2>/dev/null | sed -n 's/: FAILED.*//p')
damaged=
for name in $failed; do
    [ -f "$name" ] || continue
    printf '%s: not as packed\n' "$name"
    bad=${bad:-$name: not as packed} damaged="$damaged $(quoted "$bundle/$name")"
done
for name in $(find . -type f ! -name '.*' ! -name SHA256SUMS | sed 's,^\./,,; s/ /?/g'); do
    grep -q "^[^ ]*  $(printf %s "$name" | sed 's/[.[\*^$]/\\&/g')\$" SHA256SUMS && continue
    printf '%s: is not in the list\n' "$name"
    bad=${bad:-$name: is not in the list} damaged="$damaged $(quoted "$bundle/$name")"
done
if [ -n "$bad" ]; then
    fail "$bad" "${damaged:+rm$damaged; }$copy"
fi
printf 'ok      all %s files are as packed\n' "$(wc -l <SHA256SUMS | tr -d ' ')"

# --- the machine --------------------------------------------------------------------------------

arch=$(uname -m)
[ "$arch" = "$(about arch)" ] ||
    fail "bundle is for $(about arch); this machine is $arch" "skinjob bundle --arch $arch   # on the laptop"
glibc=$(getconf GNU_LIBC_VERSION 2>/dev/null | sed -n 's/^glibc //p')
oldest=$(printf '%s\n%s\n' "${glibc:-0}" "$(about glibc)" | sort -t. -k1,1n -k2,2n | sed -n 1p)
[ "$oldest" = "$(about glibc)" ] ||
    fail "bundle is for glibc $(about glibc) or newer; this machine has ${glibc:-none}" \
        "skinjob bundle --glibc ${glibc:-2.28}   # on the laptop; or install inside a container"

# A candidate is run, not trusted: shims answer to names of Pythons that they do not have.
ask='
import sys, sysconfig
words = []
if sysconfig.get_config_var("Py_GIL_DISABLED"): words.append("free-threaded")
if "PyPy" in sys.version: words.append("PyPy")
if sys.maxsize < 2**32: words.append("32 bits")
try: import venv, zlib
except ImportError: words.append("without venv")
print("%d.%d.%d%s" % (sys.version_info[:3] + (words and " (%s)" % ", ".join(words) or "",)))
'
need=$(about python)
python='' found='' carried=
for name in "$bundle"/python/*.tar.gz; do
    [ -f "$name" ] && [ -z "$asked" ] && carried=$name answer=$need
done
[ -n "$carried" ] || for name in ${asked:+"$asked"} ${asked:-"python$need" python3 python \
    "/usr/bin/python$need" "/usr/local/bin/python$need" \
    python3.14 python3.13 python3.12 python3.11 python3.10 python3.9 python3.8}; do
    answer=$("$name" -E -c "$ask" 2>/dev/null </dev/null) || continue
    case $answer in
    "$need".*[0-9]) python=$name; break ;;
    esac
    case ", $found," in
    *", $answer,"*) ;;
    *) found="${found:+$found, }$answer" ;;
    esac
done
if [ -z "$python$carried" ]; then
    [ -n "$asked" ] && [ -z "$found" ] && found="$asked, which does not run"
    fail "bundle is for Python $need; found ${found:-none}" \
        "module load python/$need; $again   # or --python EXE, or bundle for a Python that is here"
fi
printf 'ok      Python %s (%s)\n' "$answer" "${carried:-$(command -v "$python")}"

there=$prefix # the folder that exists already, on the same disk
while [ ! -d "$there" ]; do
    [ -e "$there" ] && fail "$there: is not a folder" "$again --prefix ANOTHER"
    there=$(dirname -- "$there")
done
need_kb=$(about room_kb) need_files=$(about room_files)
free_kb=$(LC_ALL=C df -Pk "$there" 2>/dev/null | awk 'END {print $4}')
free_files=$(LC_ALL=C df -Pi "$there" 2>/dev/null | awk 'END {if ($2 > 0) print $4}')
case $free_files in '' | *[!0-9]*) free_files=$need_files ;; esac # not limited, or not known
if [ "${free_kb:-0}" -lt "$need_kb" ] || [ "$free_files" -lt "$need_files" ]; then
    gb() { awk "BEGIN {printf \"%.1f GB\", $1 / 1e6}"; }
    fail "$there has $(gb "${free_kb:-0}") and $free_files files free; $(gb "$need_kb") and $need_files are needed" \
        "sh $(quoted "$bundle/install.sh") --prefix /scratch/...   # a larger disk that jobs see"
fi
probe=$(mktemp "$there/.skinjob-XXXXXX" 2>/dev/null) ||
    fail "$there: cannot be written" "sh $(quoted "$bundle/install.sh") --prefix ANOTHER"
printf '#!/bin/sh\nexit 0\n' >"$probe"
chmod 700 "$probe"
"$probe" 2>/dev/null
runs=$?
rm -f "$probe"
[ $runs -eq 0 ] || fail "$there does not let programs run (noexec)" \
    "sh $(quoted "$bundle/install.sh") --prefix /scratch/..."
printf 'ok      room in %s; df does not see quotas: quota -s, lfs quota\n' "$there"

# --- install ------------------------------------------------------------------------------------

if [ -e "$version" ]; then # left by an install that was killed, or still running
    read -r host pid <"$version/installing" 2>/dev/null || host='' pid=''
    if [ "$host" != "$(uname -n)" ] || kill -0 "$pid" 2>/dev/null; then
        fail "$version: another install is writing it (process $pid on $host)" \
            "rm -r $(quoted "$version"); $again   # if that one has ended"
    fi
    rm -rf "$version"
fi
log=$version/install.log
undo() {
    rm -rf "$version"
    rmdir "$prefix/versions" 2>/dev/null
    made=$prefix
    while [ "$made" != "$there" ]; do
        rmdir "$made" 2>/dev/null || break
        made=$(dirname -- "$made")
    done
}
broken() { # what failed, and the end of its output
    tail -n 8 "$log" >&2
    undo
    fail "$1; nothing was changed" "$2"
}
trap 'undo; exit 130' INT
trap 'undo; exit 143' TERM HUP
mkdir -p "$version" || fail "$version: cannot be made" "ls -ld $(quoted "$there")"
printf '%s %s\n' "$(uname -n)" $$ >"$version/installing"

if [ -n "$carried" ]; then
    python=$version/python/bin/python$need
    tar -xzf "$carried" -C "$version" >"$log" 2>&1 && "$python" -E -c "$ask" >>"$log" 2>&1 ||
        broken "the Python of the bundle does not run here" "$again --python EXE"
fi
"$python" -m venv --without-pip "$version" >"$log" 2>&1 || broken "no venv with $python" "$again --python EXE"
exe=$version/bin/python
printf '...     installing %s packages into %s\n' "$(wc -l <requirements.txt | tr -d ' ')" "$version"
"$exe" "$(echo "$bundle"/wheels/pip-*.whl)/pip" --isolated --disable-pip-version-check install \
    --quiet --no-cache-dir --no-index --find-links "$bundle/wheels" --require-hashes --no-deps \
    -r "$bundle/requirements.txt" >"$log" 2>&1 || broken "pip could not install the wheels" "$again"
cp -R "$bundle/weights" "$version/weights" || broken "the weights could not be copied" "df -h $(quoted "$prefix")"

printf '...     self-test: imports, weights, a short training; the first import may take minutes\n'
(cd -- "$version" && "$exe" -m skinjob.bundle.selftest "$(about needs_driver)") 2>"$log" ||
    broken "the new version fails its self-test" "$again   # or send the lines above to your site"

rm -f "$log" "$version/installing"
cp "$bundle/BUNDLE.txt" "$version/BUNDLE.txt.part" && mv "$version/BUNDLE.txt.part" "$version/BUNDLE.txt"
before=$(readlink "$prefix/current" 2>/dev/null)
switch
trap - INT TERM HUP
printf 'installed: %s\n' "$version"
[ -n "$before" ] && printf 'before:    %s/%s stays; jobs in the queue use it. Later: rm -r\n' "$prefix" "$before"
next_steps
