# Functions that the scripts share. To be sourced.

# Prints the name of the step that begins, and the duration of the previous one.
step() {
    step_end
    step_name=$1
    step_began=$SECONDS
    echo
    echo "== $step_name"
}

step_end() {
    [ -n "${step_name:-}" ] || return 0
    echo "-- $step_name: $((SECONDS - step_began)) s"
    if [ -n "${job_times:-}" ]; then
        record "$step_name" $((SECONDS - step_began))
    fi
    step_name=
}

# Prints the directory of the newest installed PostgreSQL server, or nothing if there is none.
postgres_bin() {
    if [ -n "${PQ_TEST_PG_BIN:-}" ]; then
        echo "$PQ_TEST_PG_BIN"
        return
    fi
    local dir
    for dir in $(ls -d /usr/lib/postgresql/*/bin 2>/dev/null | sort -rV); do
        if [ -x "$dir/initdb" ] && [ -x "$dir/postgres" ]; then
            echo "$dir"
            return
        fi
    done
    if command -v initdb >/dev/null && command -v postgres >/dev/null; then
        dirname "$(command -v initdb)"
    fi
}

# Runs a command with a throwaway server.
#
# The tests create and drop hundreds of databases, and creating the files of each on a disk takes a large part of the
# processor time. So the server's files are in memory if 8 GiB are free there. Those of the command are where they were.
with_postgres() {
    local files=${TMPDIR:-/tmp} kib=0
    if [ -w /dev/shm ]; then
        kib=$({ awk '/^MemAvailable/ { print $2 }' /proc/meminfo; df -k /dev/shm | awk 'END { print $4 }'; } | sort -n | head -n 1)
    fi
    if [ "$kib" -ge $((8 << 20)) ]; then
        TMPDIR=/dev/shm target/debug/with-postgres -- env TMPDIR="$files" "$@"
    else
        target/debug/with-postgres -- "$@"
    fi
}

# Prints the path of psql.
psql_path() {
    command -v psql || echo "$(postgres_bin)/psql"
}

# Prints the URL of a database on the server of the tests.
database_url() {
    sed -E "s|(://[^/]*)/[^?]*|\1/$1|" <<<"$PQ_TEST_DATABASE_URL"
}

# Installs Debian packages.
install_packages() {
    [ $# -gt 0 ] || return 0
    if ! command -v apt-get >/dev/null; then
        echo "missing packages (Debian names): $*; install them and run this again" >&2
        exit 1
    fi
    local root=()
    if [ "$(id -u)" -ne 0 ]; then
        command -v sudo >/dev/null || { echo "missing packages: $*; run as root: apt-get install $*" >&2; exit 1; }
        root=(sudo)
    fi
    echo "installing: $*"
    "${root[@]}" apt-get update -qq
    "${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null
}

# Prints the list of test binaries. ci/test has built them.
list_binaries() {
    if [ -n "${job_logs:-}" ]; then
        cat "$job_logs/binaries"
    else
        python3 ci/test-binaries --features pq-testing/wheel
    fi
}

# Installs a tool with cargo, in this version, in the user's cache directory: once for all clones. Sets tool_path.
#
# It is built without optimisation: each tool runs for a few seconds, and an optimised build takes minutes.
cargo_tool() {
    local crate=$1 version=$2 command=$3 tool
    tool=${XDG_CACHE_HOME:-$HOME/.cache}/pq/tools/$crate-$version
    tool_path=$tool/bin/$command
    if [ ! -x "$tool_path" ]; then
        echo "building $crate $version in $tool (once)"
        CARGO_PROFILE_DEV_DEBUG=0 cargo install --quiet --locked --debug --root "$tool" \
            --target-dir target/tools --version "$version" "$crate"
    fi
}
