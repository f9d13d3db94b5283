#!/usr/bin/env bash
# down.sh STATE: stops what up.sh started for STATE, its jobs first, and nothing else.
# STATE and its logs stay. Calling it again, or for a STATE that never existed, changes nothing.
set -uo pipefail

say() { echo "slurm: $*" >&2; }

[ $# = 1 ] || { sed -n '2,3s/^# \{0,1\}//p' "$0" >&2; exit 2; }
state=$(cd "$1" 2>/dev/null && pwd -P) || exit 0
[ -e "$state/.lock" ] || exit 0
export PATH=$PATH:/usr/sbin:/sbin
exec 9>"$state/.lock"
flock 9

started_here() {  # PID START: is it still that process? Pids are used again.
  [ -n "$2" ] && [ "$(sed 's/.*) //' "/proc/$1/stat" 2>/dev/null | cut -d' ' -f20)" = "$2" ]
}

# Jobs outlive slurmd, so they are cancelled while slurmctld is still there.
name=$(cat "$state/pid/netns" 2>/dev/null)
if [ -s "$state/pid/slurmctld" ] && read -r pid started <"$state/pid/slurmctld" &&
  started_here "$pid" "$started"; then
  # shellcheck disable=SC2016  # the inner bash expands these
  SLURM_CONF=$state/conf/slurm.conf timeout 20 nsenter --net="/run/netns/$name" bash -c '
    jobs=$(squeue -h -o %A | sort -u)
    [ -z "$jobs" ] || scancel --full $jobs
    while [ -n "$(squeue -h)" ]; do sleep 0.2; done' || say "some jobs may be left"
fi

# All at once: each takes about two seconds, and none needs the others any more.
daemons=(slurmd slurmctld slurmdbd mariadbd munged)
running() {  # DAEMON: sets pid; is it still there?
  [ -s "$state/pid/$1" ] && read -r pid started <"$state/pid/$1" && started_here "$pid" "$started"
}
for daemon in "${daemons[@]}"; do
  if running "$daemon"; then kill -TERM "$pid"; fi
done
for daemon in "${daemons[@]}"; do
  for _ in $(seq 100); do
    running "$daemon" || break
    sleep 0.1
  done
  if running "$daemon"; then
    say "$daemon does not end by itself: killed"
    kill -KILL "$pid"
  fi
  rm -f "$state/pid/$daemon"
done

if [ -n "$name" ] && [ -e "/run/netns/$name" ]; then ip netns delete "$name"; fi
rm -f "$state/pid/netns"
