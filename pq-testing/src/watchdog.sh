# The watchdog of pq-testing: run as `sh -c <this> pq-testing-watchdog [DIRECTORY]`.
#
# Its input is a pipe, and the watched process holds the only other end. Each line replaces what the watchdog has to
# stop: "process PID", "container NAME" or "nothing". When the pipe ends, the watched process has ended or has cleaned
# up itself. The watchdog then stops that process or container and removes DIRECTORY.
trap '' HUP INT QUIT TERM
what=nothing
which=
while read -r word rest; do
  what=$word
  which=$rest
done

ended() {
  kill -0 "$1" 2>/dev/null || return 0
  # If no process reaps orphans, an ended process remains as a zombie.
  grep -q '^State:[[:space:]]*Z' "/proc/$1/status" 2>/dev/null
}

case $what in
process)
  # Immediate shutdown. CONT, because a test may have paused the server.
  kill -QUIT "$which" 2>/dev/null
  kill -CONT "$which" 2>/dev/null
  tries=0
  until ended "$which" || [ "$tries" -ge 80 ]; do
    sleep 0.1
    tries=$((tries + 1))
  done
  ended "$which" || kill -KILL "$which" 2>/dev/null
  ;;
container)
  docker rm --force --volumes "$which" >/dev/null 2>&1
  ;;
esac

# More than once: a program that is still ending may write another file meanwhile.
tries=0
while [ -n "${1-}" ] && [ -e "$1" ] && [ "$tries" -lt 50 ]; do
  rm -rf -- "$1" 2>/dev/null || sleep 0.1
  tries=$((tries + 1))
done
