#!/bin/sh
# Joins the parts beside it into the bundle, after a check of each: sh join.sh [FOLDER]
set -u
parts=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd -P) || exit 1
into=${1:-$(dirname -- "$parts")}

fail() {
    printf 'error: %s\nfix:   %s\n' "$1" "$2" >&2
    exit 1
}

cd -- "$parts" || exit 1
[ -f SHA256SUMS ] || fail "$parts: no SHA256SUMS" "copy it again from the laptop"
bad=$(LC_ALL=C sha256sum -c SHA256SUMS 2>/dev/null | sed -n 's/: FAILED.*//p')
for name in $bad; do
    words="is missing"
    [ -f "$name" ] && words="not as packed" && rm_first="rm '$parts/$name'; "
    printf 'error: %s: %s\n' "$name" "$words" >&2
done
if [ -n "$bad" ]; then
    printf 'fix:   %s   # on the laptop or the stick\n' "${rm_first:-}copy it here again" >&2
    exit 1
fi
first=$(echo ./*.tar.00001)
name=$(basename "$first" .tar.00001)
[ -e "$into/$name" ] && fail "$into/$name: exists already" "rm -r '$into/$name'; sh '$0'"
cat "./$name".tar.* | (cd -- "$into" && tar xf -) ||
    fail "$into: the parts could not be unpacked there" "df -h '$into'; rm -r '$into/$name'"
printf 'joined: %s\nnext:   sh %s/install.sh\n' "$into/$name" "$into/$name"
