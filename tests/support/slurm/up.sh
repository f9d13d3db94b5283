#!/usr/bin/env bash
# up.sh STATE [--accounting none|dbd] [--gpus N] [--gpu-type NAME] [--cpus N]
#
# Starts a private one-node SLURM cluster behind an air gap and returns when its node is idle. Its
# partitions: lab, the default, without a limit; short, of 30 minutes; closed, which is down.
# Calling it again with the same STATE and no options starts only the daemons that have ended.
#   --accounting  dbd: slurmdbd on its own MariaDB, so that sacct answers. none (default): no sacct.
#   --gpus        fake GPUs (default 4)
#   --gpu-type    their type, as a job may ask for it (default: none)
#   --cpus        CPUs that SLURM counts (default 8); may be more than the machine has
# What is in STATE/site.conf, if there is one, is added to slurm.conf.
# Needs root. Touches STATE and /run/netns, nothing else. Afterwards:
#   . STATE/env.sh; nsenter --net="$SLURM_NETNS" sinfo
set -euo pipefail

say() { echo "slurm: $*" >&2; }
usage() { sed -n '2,13s/^# \{0,1\}//p' "$0" >&2; exit 2; }

[ $# -ge 1 ] || usage
state=$1; shift
if [ $# = 0 ] && [ -s "$state/options" ]; then  # as it was started
  read -ra words <"$state/options"
  set -- "${words[@]}"
fi
options=$*
accounting=none gpus=4 gpu_type='' cpus=8
while [ $# -gt 0 ]; do
  [ $# -ge 2 ] || usage
  case $1 in
    --accounting) accounting=$2 ;;
    --gpus) gpus=$2 ;;
    --gpu-type) gpu_type=$2 ;;
    --cpus) cpus=$2 ;;
    *) usage ;;
  esac
  shift 2
done
case $accounting in none | dbd) ;; *) usage ;; esac

# ---- what must be there ---------------------------------------------------------------------

export PATH=$PATH:/usr/sbin:/sbin  # where Debian keeps daemons, and not on every user's PATH
missing=()
need() { command -v "$1" >/dev/null || missing+=("$2"); }
need slurmctld slurmctld
need slurmd slurmd
need sbatch slurm-client
need munged munge
need ip iproute2
if [ "$accounting" = dbd ]; then
  need slurmdbd slurmdbd
  need mariadbd mariadb-server-core
  need mariadb mariadb-client-core
fi
[ ${#missing[@]} = 0 ] || { say "SLURM is not installed: apt-get install ${missing[*]}"; exit 3; }
[ "$(id -u)" = 0 ] || { say "needs root"; exit 3; }

mkdir -p "$state"
state=$(cd "$state" && pwd -P)
# The longest socket in STATE, munge/munge.socket.2, must fit the 108 bytes of a socket's address.
[ ${#state} -le 85 ] || { say "$state: too long a path for a socket; take a shorter one"; exit 2; }
mkdir -p "$state"/{conf,dev,log,pid,munge,spool/ctld,spool/d}
echo "$options" >"$state/options"
exec 9>"$state/.lock"
flock 9

# ---- daemons: one file per daemon with its pid and start time -------------------------------

start_time() { sed 's/.*) //' "/proc/$1/stat" 2>/dev/null | cut -d' ' -f20; }

alive() {  # NAME: is the process of STATE/pid/NAME the one started here? Pids are used again.
  local pid started
  [ -s "$state/pid/$1" ] || return 1
  read -r pid started <"$state/pid/$1"
  [ -n "$started" ] && [ "$(start_time "$pid")" = "$started" ]
}

start() {  # NAME COMMAND...: starts a daemon that stays in the foreground, inside the air gap
  local name=$1 pid
  shift
  if alive "$name"; then return; fi
  rm -f "$state/pid/$name"
  # The daemon-to-be writes its own pid, while it still holds the lock, and then becomes the daemon
  # by exec: however early this script is killed, down.sh finds every daemon. A session of its own
  # keeps a Ctrl-C in the terminal from reaching it.
  (
    pid=$BASHPID  # inside the $( ) below it would be another
    echo "$pid $(start_time "$pid")" >"$state/pid/$name"
    exec 9>&- </dev/null >>"$state/log/$name.out" 2>&1
    exec nsenter --net="$netns" setsid "$@"
  ) &
  until [ -s "$state/pid/$name" ]; do sleep 0.01; done
}

wait_for() {  # SECONDS NAME COMMAND...: until the command succeeds; NAME is the daemon it asks
  local end=$((SECONDS + $1)) name=$2
  shift 2
  until "$@" >/dev/null 2>&1; do
    if [ "$SECONDS" -ge "$end" ] || ! alive "$name"; then
      say "$name does not answer; the end of its logs:"
      tail -n 15 "$state/log/$name".* >&2
      exit 4
    fi
    sleep 0.1
  done
}

inside() { nsenter --net="$netns" "$@"; }

# ---- the air gap: a network namespace with loopback only ------------------------------------

# The name is chosen once and kept. A name derived from STATE could be that of a namespace that a
# killed session left behind, with its daemons still on the ports.
[ -s "$state/pid/netns" ] || echo "skinjob-$$-$RANDOM" >"$state/pid/netns"
name=$(cat "$state/pid/netns")
netns=/run/netns/$name
[ -e "$netns" ] || ip netns add "$name" ||
  { say "needs the right to make a network namespace (CAP_SYS_ADMIN)"; exit 3; }
ip -n "$name" link set lo up
# While 127.0.0.1 is the only IPv4 address, glibc's AI_ADDRCONFIG, which SLURM passes, resolves
# nothing, not even "127.0.0.1". A second loopback address is enough.
ip -n "$name" addr replace 127.0.0.2/8 dev lo

# ---- configuration --------------------------------------------------------------------------

# Ports are those of the manual: the namespace is the cluster's own, so nothing else is on them.
host=$(uname -n)
host=${host%%.*}
memory_mb=$(awk '/MemTotal/ {print int($2 / 1024 * 0.9)}' /proc/meminfo)
if [ ! -s "$state/munge/key" ]; then (umask 077 && head -c 128 /dev/urandom >"$state/munge/key"); fi

# A fake GPU must be a character device with a number at its end: with plain files the job's
# CUDA_VISIBLE_DEVICES stays empty; with no files at all the node is invalid.
: >"$state/conf/gres.conf"
gres=''
if [ "$gpus" -gt 0 ]; then
  for number in $(seq 0 $((gpus - 1))); do ln -sfn /dev/null "$state/dev/nvidia$number"; done
  numbers=$([ "$gpus" = 1 ] && echo 0 || echo "[0-$((gpus - 1))]")
  echo "NodeName=$host Name=gpu ${gpu_type:+Type=$gpu_type }AutoDetect=off File=$state/dev/nvidia$numbers" \
    >"$state/conf/gres.conf"
  gres="Gres=gpu:${gpu_type:+$gpu_type:}$gpus"
fi

if [ "$accounting" = dbd ]; then
  storage="AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePass=$state/munge/munge.socket
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
JobAcctGatherParams=OverMemoryKill"
else
  storage="AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none"
fi

# Memory is shared out: a job that does not ask gets 1 GB. With accounting, a job that uses more than
# it got is killed within a second: by slurmd, because clusters side by side would share cgroups.
# cred_expire: a requeued job waits until its old credential is void; the default is 120 s.
# MinJobAge: scontrol remembers finished jobs for as long as any test asks.
# batch_sched_delay and the intervals: a test's job starts within a second, not within a minute.
cat >"$state/conf/slurm.conf" <<CONF
ClusterName=lab
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket=$state/munge/munge.socket,cred_expire=5
StateSaveLocation=$state/spool/ctld
SlurmdSpoolDir=$state/spool/d
SlurmctldPidFile=$state/pid/slurmctld.own
SlurmdPidFile=$state/pid/slurmd.own
SlurmctldLogFile=$state/log/slurmctld.log
SlurmdLogFile=$state/log/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
DefMemPerNode=1000
GresTypes=gpu
ReturnToService=2
SlurmdParameters=config_overrides
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0,bf_interval=1
JobRequeue=1
KillWait=2
MinJobAge=86400
InactiveLimit=0
$storage
NodeName=$host NodeAddr=127.0.0.1 CPUs=$cpus RealMemory=$memory_mb $gres State=UNKNOWN
PartitionName=lab Nodes=$host Default=YES MaxTime=INFINITE DefaultTime=60 State=UP
PartitionName=short Nodes=$host MaxTime=30 DefaultTime=30 State=UP
PartitionName=closed Nodes=$host MaxTime=INFINITE DefaultTime=60 State=DOWN
CONF
[ ! -e "$state/site.conf" ] || cat "$state/site.conf" >>"$state/conf/slurm.conf"
cat >"$state/env.sh" <<ENV
export SLURM_CONF='$state/conf/slurm.conf'
export SLURM_NETNS='$netns'
ENV
export SLURM_CONF=$state/conf/slurm.conf

# ---- start ----------------------------------------------------------------------------------

# --force: munged refuses a socket below a folder that others cannot enter, as pytest's are.
start munged munged --foreground --force --key-file="$state/munge/key" \
  --socket="$state/munge/munge.socket" --pid-file="$state/munge/munged.pid" \
  --log-file="$state/log/munged.log" --seed-file="$state/munge/seed"
wait_for 20 munged munge -n -S "$state/munge/munge.socket" -o /dev/null

if [ "$accounting" = dbd ]; then
  (umask 077 && cat >"$state/conf/slurmdbd.conf" <<CONF
AuthType=auth/munge
AuthInfo=socket=$state/munge/munge.socket
DbdHost=localhost
DbdAddr=127.0.0.1
SlurmUser=root
PidFile=$state/pid/slurmdbd.own
LogFile=$state/log/slurmdbd.log
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StorageUser=slurm
StoragePass=slurm
StorageLoc=slurm_acct
CONF
  )
  # MariaDB deletes tables from its temporary folder when it starts: in /tmp also another server's.
  mkdir -p "$state/tmp"
  if [ ! -e "$state/mysql/installed" ]; then
    TMPDIR=$state/tmp mariadb-install-db --no-defaults --user=root --datadir="$state/mysql" --skip-test-db \
      --auth-root-authentication-method=normal >"$state/log/mariadb-install.out" 2>&1 ||
      { say "mariadb-install-db failed:"; tail "$state/log/mariadb-install.out" >&2; exit 4; }
    touch "$state/mysql/installed"
  fi
  # Durability is off: a power cut would lose only a test.
  start mariadbd mariadbd --no-defaults --user=root --datadir="$state/mysql" \
    --tmpdir="$state/tmp" --socket="$state/mysql/s" --pid-file="$state/mysql/pid" --bind-address=127.0.0.1 \
    --skip-log-bin --innodb-flush-log-at-trx-commit=0 --innodb-lock-wait-timeout=900
  sql() { mariadb --no-defaults --socket="$state/mysql/s" -e "$1"; }
  wait_for 60 mariadbd sql 'select 1'
  for from in 127.0.0.1 localhost; do
    sql "create user if not exists slurm@'$from' identified by 'slurm';
         grant all on slurm_acct.* to slurm@'$from'"
  done
  start slurmdbd slurmdbd -D
  wait_for 60 slurmdbd inside sacctmgr -n list cluster
  if ! inside sacctmgr -nP list cluster format=cluster | grep -qx lab; then
    inside sacctmgr -i add cluster lab >>"$state/log/sacctmgr.out" 2>&1
  fi
fi

start slurmctld slurmctld -D -f "$SLURM_CONF"
wait_for 30 slurmctld inside scontrol ping
start slurmd slurmd -D -f "$SLURM_CONF" -N "$host"
node_is_up() {
  case $(inside sinfo -h -p lab -o %T) in
    idle | mixed | allocated) return 0 ;;
    down* | drain*) inside scontrol update nodename="$host" state=resume ;;
  esac
  return 1
}
wait_for 60 slurmd node_is_up
