# Runs jobs in parallel and reports their durations. To be sourced.
#
# `job NAME COMMAND...` starts a command when a slot is free, `cargo_job` one that builds with cargo, `jobs_end` waits for
# all, and `report` prints the table.
# The output of a job goes to target/ci/NAME.log, and its end is printed if the job fails, with the names of all
# failed tests.

set -m
job_slots=${CI_JOBS:-$(($(nproc) + 2))}
job_logs=target/ci
job_times=$job_logs/times
declare -A job_name=() job_began=()
failed_jobs=()

# record NAME SECONDS: records a step or a job that has ended for the table, with the processor time of its processes. That
# of a server is not part of it.
processor_before=0
record() {
    local processor
    # The second line has the user and the system time of all children that have ended, as 1m2.345s.
    times >"$job_logs/processor"
    processor=$(awk -F'[ ms]+' 'NR == 2 { printf "%d", $1 * 60 + $2 + $3 * 60 + $4 }' "$job_logs/processor")
    printf '%s\t%s\t%s\n' "$2" "$((processor - processor_before))" "$1" >>"$job_times"
    processor_before=$processor
}

job() {
    while [ ${#job_name[@]} -ge "$job_slots" ]; do
        reap
    done
    start_job "$@"
}

start_job() {
    local name=$1
    shift
    "$@" >"$job_logs/$name.log" 2>&1 </dev/null &
    job_name[$!]=$name
    job_began[$!]=$SECONDS
}

# Cargo lets one build use target/ at a time. So these jobs run one after the other: those that wait would only take up slots.
cargo_running= cargo_waiting=()
cargo_job() {
    if [ -n "$cargo_running" ]; then
        cargo_waiting+=("$(printf '%q ' "$@")")
    else
        cargo_running=$1
        job "$@"
    fi
}

# Starts the next one in the slot of the one that has ended.
next_cargo_job() {
    cargo_running=
    [ ${#cargo_waiting[@]} -gt 0 ] || return 0
    local next=()
    eval "next=(${cargo_waiting[0]})"
    cargo_waiting=("${cargo_waiting[@]:1}")
    cargo_running=${next[0]}
    start_job "${next[@]}"
}

# Waits until one job ends.
reap() {
    local pid status=0
    wait -n -p pid "${!job_name[@]}" || status=$?
    local name=${job_name[$pid]} seconds=$((SECONDS - job_began[$pid]))
    unset "job_name[$pid]" "job_began[$pid]"
    record "$name" "$seconds"
    if [ "$status" -eq 0 ]; then
        echo "ok      $name ($seconds s)"
        grep '^SKIPPED' "$job_logs/$name.log" || true
    else
        echo "FAILED  $name ($seconds s, exit status $status)"
        {
            tail -n 80 "$job_logs/$name.log"
            grep -E '^test .* FAILED$' "$job_logs/$name.log" || true
        } | sed 's/^/    /'
        failed_jobs+=("$name")
    fi
    if [ "$name" = "$cargo_running" ]; then
        next_cargo_job
    fi
}

# wait_for NAME...: waits until these jobs have ended.
wait_for() {
    local name
    for name in "$@"; do
        while [[ " ${job_name[*]} " == *" $name "* ]]; do
            reap
        done
    done
}

# Waits for all jobs. Fails if one of them has failed.
jobs_end() {
    while [ ${#job_name[@]} -gt 0 ]; do
        reap
    done
    if [ ${#failed_jobs[@]} -gt 0 ]; then
        echo "failed: ${failed_jobs[*]}; the whole output is in $job_logs/NAME.log" >&2
        return 1
    fi
}

# Each job has a process group of its own, and the interrupt key does not reach it.
stop_jobs() {
    local pid
    for pid in "${!job_name[@]}"; do
        kill -- "-$pid" 2>/dev/null || true
    done
}
trap 'stop_jobs; exit 130' INT TERM

# Prints the table of steps and jobs, the longest first.
report() {
    echo
    echo "seconds  processor  step"
    sort -rn "$job_times" | awk -F'\t' '{ printf "%7d  %9d  %s\n", $1, $2, $3 }'
}
