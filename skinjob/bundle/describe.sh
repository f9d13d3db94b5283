#!/bin/sh
# Prints what `skinjob bundle --for` must know of this machine. Needs no Python and installs nothing.
# Login node:   sh describe.sh > cluster.txt
# Compute node: srun --gpus=1 sh describe.sh >> cluster.txt   (with your site's options)
LC_ALL=C
export LC_ALL
unset PYTHONPATH PYTHONHOME

has() { command -v "$1" >/dev/null 2>&1; }

echo "node $(uname -n)"
echo "arch $(uname -m)"
echo "glibc $(getconf GNU_LIBC_VERSION 2>/dev/null | sed -n 's/^glibc //p' | grep . || echo none)"
grep -q -m1 avx2 /proc/cpuinfo 2>/dev/null && echo "avx2 yes" || echo "avx2 no"
echo "umask $(umask)"

# Each Python is run: a command of this name may be a stub that does not.
ask='
import sys, sysconfig
text = "%d.%d.%d" % sys.version_info[:3]
words = []
if sysconfig.get_config_var("Py_GIL_DISABLED"): words.append("free-threaded")
if "PyPy" in sys.version: words.append("PyPy")
try: import venv, zlib
except ImportError: words.append("without venv")
print(" ".join([text, sys.executable.replace(" ", "?")] + words))
'
for name in python3 python python3.14 python3.13 python3.12 python3.11 python3.10 python3.9 \
    /usr/bin/python3 /usr/bin/python3.14 /usr/bin/python3.13 /usr/bin/python3.12 \
    /usr/bin/python3.11 /usr/bin/python3.10; do
    has "$name" && "$name" -E -c "$ask" 2>/dev/null </dev/null
done | sort -u | sed 's/^/python /'

for file in /etc/profile.d/lmod.sh /etc/profile.d/modules.sh; do
    has module || { [ -r "$file" ] && . "$file" >/dev/null 2>&1; }
done
has module && module -t avail python 2>&1 | grep -i '^[a-z/_-]*python' | sed 's/^/module /'

driver=$(sed -n '1s/.* \([0-9][0-9]*\.[0-9][0-9.]*\) .*/\1/p' /proc/driver/nvidia/version 2>/dev/null)
[ -z "$driver" ] && has nvidia-smi &&
    driver=$(nvidia-smi --query-gpu=driver_version --format=csv,noheader 2>/dev/null | sed -n 1p)
echo "driver ${driver:-unknown}"
gpus=$(has nvidia-smi && nvidia-smi --query-gpu=compute_cap,name --format=csv,noheader 2>/dev/null |
    sort -u | sed -n 's/^\([0-9][0-9]*\.[0-9]\), /gpu \1 /p')
echo "${gpus:-gpu unknown}"

for name in HOME SCRATCH WORK PROJECT TMPDIR PWD; do
    eval "folder=\${$name:-}"
    [ -d "$folder" ] || continue
    room=$(df -Pk "$folder" 2>/dev/null | awk 'END {printf "%.1f GB", $4 / 1e6}')
    files=$(df -Pi "$folder" 2>/dev/null | awk 'END {print $4}')
    runs="cannot be written"
    if probe=$(mktemp "$folder/.describe-XXXXXX" 2>/dev/null); then
        printf '#!/bin/sh\nexit 0\n' >"$probe"
        chmod 700 "$probe"
        if "$probe" 2>/dev/null; then runs="runs programs"; else runs="noexec"; fi
        rm -f "$probe"
    fi
    echo "space $name $folder: $room and ${files:--} files free (without quotas), $runs"
done
{ has quota && quota -s; has lfs && lfs quota -h -u "$(id -un)" "$HOME"; } 2>/dev/null |
    sed 's/^/quota /'

for tool in sha256sum rsync apptainer singularity sbatch; do
    has "$tool" && echo "tool $tool $("$tool" --version 2>/dev/null | sed -n 1p)"
done
exit 0
