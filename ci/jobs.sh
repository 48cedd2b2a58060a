# Runs jobs in parallel and reports their durations. To be sourced.
#
# `job NAME COMMAND...` starts a command when a slot is free, `jobs_end` waits for all, and `report` prints the table.
# The output of a job goes to target/ci/NAME.log, and its end is printed if the job fails, with the names of all
# failed tests.

set -m
job_slots=${CI_JOBS:-$(($(nproc) + 2))}
job_logs=target/ci
job_times=$job_logs/times
declare -A job_name=() job_began=()
failed_jobs=()

# Records the time of a step or a job for the table.
record() {
    printf '%s\t%s\n' "$2" "$1" >>"$job_times"
}

job() {
    local name=$1
    shift
    while [ ${#job_name[@]} -ge "$job_slots" ]; do
        reap
    done
    "$@" >"$job_logs/$name.log" 2>&1 </dev/null &
    job_name[$!]=$name
    job_began[$!]=$SECONDS
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
}

# Waits for all jobs that run.
jobs_wait() {
    while [ ${#job_name[@]} -gt 0 ]; do
        reap
    done
}

# Waits for all jobs. Fails if one of them has failed.
jobs_end() {
    jobs_wait
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
    echo "seconds  step"
    sort -rn "$job_times" | awk -F'\t' '{ printf "%7d  %s\n", $1, $2 }'
}
