# Shared by scripts/launch and scripts/kill: where things are, and who is really running.
#
# A process is known by its pid AND its start time (field 22 of /proc/PID/stat), both recorded when
# it was started: a pid file that survived a reboot, or whose pid now belongs to somebody else's
# program, is never trusted.

repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
dir=${TERCET_DIR:-$repo/.tercet}
config=$dir/tercet.toml
run=$dir/run

say() { printf '%s\n' "$*"; }
die() { printf '%s: %s\n' "${0##*/}" "$1" >&2; exit "${2:-1}"; }

# Start time of a process in clock ticks since boot; nothing if there is none (or a zombie).
start_time() {
  local stat fields
  stat=$(cat "/proc/$1/stat" 2>/dev/null) || return 1
  read -r -a fields <<<"${stat##*) }"          # behind "(comm)": state is 0, start time is 19
  [[ ${fields[0]} != Z ]] || return 1
  printf '%s' "${fields[19]}"
}

# State letter of a process: R, S, T (stopped) ...
state_of() { sed 's/.*) //' "/proc/$1/stat" 2>/dev/null | cut -c1; }

# record FILE PID: remember a process by pid and start time.
record() { printf '%s %s\n' "$2" "$(start_time "$2")" >"$1"; }

# pid_in FILE PROGRAM: the pid recorded in FILE if that very process still runs, else status 1.
# A file that holds a pid alone (written by the program itself) is believed only if the process
# runs PROGRAM and was not started after the file was written.
pid_in() {
  local pid started exe
  [[ -s $1 ]] || return 1
  read -r pid started <"$1" || [[ -n $pid ]] || return 1
  [[ $pid =~ ^[0-9]+$ ]] || return 1
  exe=$(readlink "/proc/$pid/exe" 2>/dev/null) || return 1
  exe=${exe% (deleted)}                        # rebuilt while it runs
  [[ ${exe##*/} == "$2" ]] || return 1
  if [[ -n $started ]]; then
    [[ $started == "$(start_time "$pid")" ]] || return 1
  else
    local born
    born=$(( $(awk '/^btime/ {print $2}' /proc/stat) + $(start_time "$pid") / $(getconf CLK_TCK) ))
    (( born <= $(stat -c %Y "$1") + 1 )) || return 1
  fi
  printf '%s' "$pid"
}

# addresses_of BANK: host:port of each node of bank a, b or c, in shard order, from tercet.toml.
addresses_of() {
  sed -n "s/^[[:space:]]*$1[[:space:]]*=[[:space:]]*\[\(.*\)\].*/\1/p" "$config" | grep -oE '[^", ]+:[0-9]+'
}

# Every node of the volume, a line each: BANK SHARD ADDRESS PORT.
nodes() {
  local bank shard address
  for bank in a b c; do
    shard=0
    for address in $(addresses_of "$bank"); do
      say "$bank $shard $address ${address##*:}"
      shard=$((shard + 1))
    done
  done
}

node_data() { printf '%s' "$dir/nodes/$1$2"; }   # BANK SHARD
node_pid_file() { printf '%s' "$run/node-$1.pid"; } # PORT
node_log() { printf '%s' "$run/node-$1.log"; }
mount_pid_file=$run/mount.pid

# mounted_at DIR: is a tercet (or dead FUSE) filesystem mounted exactly there?
mounted_at() {
  # As the kernel writes it there.
  M=$(sed 's/\\/\\134/g; s/ /\\040/g; s/\t/\\011/g' <<<"$1") \
    awk '$5 == ENVIRON["M"] && / - fuse/ {found=1} END {exit !found}' /proc/self/mountinfo
}

# Where the volume is mounted according to tercet.toml.
mountpoint_of() { sed -n 's/^[[:space:]]*mountpoint[[:space:]]*=[[:space:]]*"\(.*\)".*/\1/p' "$config"; }

# until_ok SECONDS COMMAND...: try every 50 ms until it succeeds or the deadline passes.
until_ok() {
  local deadline=$(( $(date +%s%N) + $1 * 1000000000 )); shift
  until "$@"; do
    (( $(date +%s%N) < deadline )) || return 1
    sleep 0.05
  done
}
