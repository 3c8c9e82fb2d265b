#!/usr/bin/env bash
# Deploys a release in one command: starts it as the idle pool, lets switchover prove and promote it, stops the old one.
#
#   release.sh jar JAR          for two ports of this host, with one process each
#   release.sh compose VERSION  for two services of a compose project, with the image of this version
#   release.sh start            after a reboot: starts the jar of the pool that served last (state_dir), or of the active pool
#
# If a step before the promotion fails, or switchover takes the release back while it is observed, the script undoes the earlier steps
# and exits with the code of `switchover promote` (3: the release was not ready in time, or was taken back) or with 1. It can be
# interrupted at any point and run again; the next run completes an interrupted release. Only one instance runs at a time.
#
# Settings, from the environment:
#   SERVICE     the service in switchover's file, with the pools blue and green (default: shop)
#   SWITCHOVER  the command line of the running switchover
#               (default: switchover; for compose: $COMPOSE exec -T switchover switchover)
#   RELEASE_DIR the folder for the lock, PIDs, jars and logs (default: ./release)
#   STOP_AFTER  seconds between SIGTERM and SIGKILL, more than the application's graceful shutdown takes (default: 40)
#   VERSION     the version in status and metrics (default: for compose the argument; for shop-2.0.0.jar: 2.0.0)
#   jar:        BLUE_PORT, GREEN_PORT (default: the port of the pool's first peer), JAVA (java), JAVA_OPTS
#               ADOPT=1: takes over a process that listens on one of the ports and was not started by this script, and stops it
#               when its pool is replaced
#   compose:    COMPOSE ("docker compose"), run in the folder of the compose file, whose .env names BLUE_VERSION and GREEN_VERSION
set -euo pipefail

# A background job of a script is started with SIGINT ignored, and a shell cannot trap a signal that was ignored at its start.
if [ -z "${RELEASE_SIGINT:-}" ] && (( 16#$(awk '/^SigIgn:/ { print $2 }' /proc/$$/status) & 2 )); then
    RELEASE_SIGINT=default exec env --default-signal=INT bash "$0" "$@"
fi
unset RELEASE_SIGINT

SERVICE=${SERVICE:-shop}
RELEASE_DIR=${RELEASE_DIR:-$PWD/release}
STOP_AFTER=${STOP_AFTER:-40}
COMPOSE=${COMPOSE:-docker compose}

say() { echo "release: $*"; }
die() { echo "release: $*" >&2; exit 1; }
usage() { sed -n '2,/^set /s/^# \{0,1\}//p' "$0"; }

# --- processes and ports of this host -------------------------------------------------------------------------------------

boot() { cat /proc/sys/kernel/random/boot_id; }

# The start time of a process, in ticks since the boot; empty if it does not run.
started() { { sed 's/.*) //' "/proc/$1/stat" | awk '$1 != "Z" { print $20 }'; } 2>/dev/null; }

command_of() { { tr '\0' ' ' <"/proc/$1/cmdline" | cut -c 1-100; } 2>/dev/null; }

# The PIDs of processes that listen on a port, on any address; "hidden" for a process of another user.
listeners() {
    local inode pids
    { awk -v port="$(printf '%04X' "$1")" '$4 == "0A" && $2 ~ (":" port "$") { print $10 }' /proc/net/tcp /proc/net/tcp6 2>/dev/null || true; } |
        while read -r inode; do
            pids=$(find /proc/[0-9]*/fd -maxdepth 1 -lname "socket:\[$inode\]" 2>/dev/null | cut -d/ -f3) || true
            echo "${pids:-hidden}"
        done | sort -u
}

descends() { # PID ANCESTOR: whether PID is ANCESTOR or one of its descendants
    local pid=$1
    while [ "${pid:-0}" -gt 1 ]; do
        [ "$pid" != "$2" ] || return 0
        pid=$({ awk '/^PPid:/ { print $2 }' "/proc/$pid/status"; } 2>/dev/null) || return 1
    done
    return 1
}

# --- the application of a pool, as a process of this host -----------------------------------------------------------------

jar_record() { echo "$2 $(started "$2") $(boot)" >"$RELEASE_DIR/$1.pid"; }

jar_pid() { # POOL: the PID of its running process, if this script started or adopted it
    local pid start since
    [ -e "$RELEASE_DIR/$1.pid" ] || return 1
    read -r pid start since <"$RELEASE_DIR/$1.pid" || return 1
    # The kernel reuses PIDs: a process with the same PID and another start time is a different one.
    [ "$since" = "$(boot)" ] && [ -n "$start" ] && [ "$start" = "$(started "$pid")" ] && echo "$pid"
}

jar_port() {
    if [ "$1" = blue ] && [ -n "${BLUE_PORT:-}" ]; then echo "$BLUE_PORT"
    elif [ "$1" = green ] && [ -n "${GREEN_PORT:-}" ]; then echo "$GREEN_PORT"
    else peer_port "$1"; fi
}

# The processes that listen on the port of a pool, except its own process.
jar_strangers() {
    local own holder
    own=$(jar_pid "$1" || true)
    for holder in $(listeners "$(jar_port "$1")"); do
        if [ "$holder" = hidden ] || [ -z "$own" ] || ! descends "$holder" "$own"; then echo "$holder"; fi
    done
}

# Fails if another process listens on the port: it would respond to the probes of a release that cannot start.
jar_check() {
    local stranger port
    port=$(jar_port "$1")
    [ -n "$port" ] || die "the pool $1 has no peer, so its port is not known; set ${1^^}_PORT"
    stranger=$(jar_strangers "$1" | head -n 1)
    [ -n "$stranger" ] || return 0
    [ "$stranger" != hidden ] || die "port $port ($1) is held by a process that this user may not see; stop it, or run this as its user"
    if [ "${ADOPT:-}" = 1 ]; then
        jar_record "$1" "$stranger"
        say "adopted pid $stranger on port $port as $1 ($(command_of "$stranger"))"
    else
        die "port $port ($1) is held by pid $stranger, which this script did not start ($(command_of "$stranger")); stop it, or run this with ADOPT=1 to take it over as $1"
    fi
}

jar_version() {
    local name
    name=$(basename "$1" .jar)
    if [[ $name =~ -([0-9].*)$ ]]; then echo "${BASH_REMATCH[1]}"; else echo "$name"; fi
}

jar_runs() { jar_pid "$1" >/dev/null; }
jar_keep() { [ ! -e "$RELEASE_DIR/$1.jar" ] || cp "$RELEASE_DIR/$1.jar" "$RELEASE_DIR/$1.jar.before"; }
jar_set() { cp "$2" "$RELEASE_DIR/$1.jar.new" && mv "$RELEASE_DIR/$1.jar.new" "$RELEASE_DIR/$1.jar"; }
# An adopted process has no jar here to restore.
jar_restore() { if [ -e "$RELEASE_DIR/$1.jar.before" ]; then mv "$RELEASE_DIR/$1.jar.before" "$RELEASE_DIR/$1.jar"; else rm -f "$RELEASE_DIR/$1.jar"; fi; }

jar_start() {
    local options
    [ -e "$RELEASE_DIR/$1.jar" ] || return 0
    read -ra options <<<"${JAVA_OPTS:-}"
    [ ! -e "$RELEASE_DIR/$1.log" ] || mv "$RELEASE_DIR/$1.log" "$RELEASE_DIR/$1.log.before"
    # In a separate session, so that it does not get Ctrl-C, and without the lock, which it would keep after the end of this script.
    SERVER_PORT=$(jar_port "$1") setsid nohup "${JAVA:-java}" "${options[@]}" -jar "$RELEASE_DIR/$1.jar" \
        </dev/null >"$RELEASE_DIR/$1.log" 2>&1 9>&- &
    jar_record "$1" $!
}

# Whether its own process listens on its port, and no other process does.
jar_serves() {
    jar_runs "$1" && [ -n "$(listeners "$(jar_port "$1")")" ] && [ -z "$(jar_strangers "$1")" ]
}

jar_stop() {
    local pid waited=0 stranger
    if ! pid=$(jar_pid "$1"); then
        stranger=$(jar_strangers "$1" | head -n 1)
        [ -n "$stranger" ] || return 0
        say "$1 is not stopped: pid $stranger listens on its port, and this script did not start it ($(command_of "$stranger"))" >&2
        return 1
    fi
    kill -TERM "$pid" 2>/dev/null || return 0
    while jar_runs "$1"; do
        if [ "$waited" -eq $((STOP_AFTER * 10)) ]; then
            say "$1 did not stop within ${STOP_AFTER}s, killing it"
            kill -KILL "$pid" 2>/dev/null || true
        fi
        sleep 0.1
        waited=$((waited + 1))
    done
    rm -f "$RELEASE_DIR/$1.pid"
}

jar_why() { tail -n 5 "$RELEASE_DIR/$1.log" >&2; }

# --- the application of a pool, as a service of the compose project -------------------------------------------------------

compose() { $COMPOSE "$@" 9>&-; }
compose_variable() { echo "${1^^}_VERSION"; }
compose_check() { :; }
compose_version() { echo "$1"; }
compose_runs() { [ -n "$(compose exec -T "app-$1" true 2>/dev/null && echo yes)" ]; }
compose_serves() { compose_runs "$1"; }
# -p keeps the mode, because .env may contain secrets.
compose_keep() { cp -p .env "$RELEASE_DIR/$1.env.before" 2>/dev/null || : >"$RELEASE_DIR/$1.env.before"; }
compose_restore() { if [ -e "$RELEASE_DIR/$1.env.before" ]; then mv "$RELEASE_DIR/$1.env.before" .env; fi; }
compose_start() { compose up -d --no-deps "app-$1" >"$RELEASE_DIR/$1.log" 2>&1; }
compose_stop() { compose stop -t "$STOP_AFTER" "app-$1" >"$RELEASE_DIR/$1.log" 2>&1; }
compose_why() { compose logs --tail 5 "app-$1" >&2; }

compose_set() {
    local variable
    variable=$(compose_variable "$1")
    # Copies the file for its mode, then replaces it atomically.
    [ ! -e .env ] || cp -p .env .env.new
    { grep -v "^$variable=" .env 2>/dev/null || true; echo "$variable=$2"; } >.env.new
    mv .env.new .env
    # Without this, compose would start the existing container with the old version.
    compose rm -f -s "app-$1" >"$RELEASE_DIR/$1.log" 2>&1 || true
}

# --- switchover -----------------------------------------------------------------------------------------------------------

# Prints a line `pool NAME STATE SAFE VERSION` for each pool of the service, a line `peer NAME PORT` for each of its peers, and a
# line `last NAME` if no pool is ready since the start of switchover and state_dir has the pool that served before.
pools() {
    $SWITCHOVER status --json 9>&- | tr '{' '\n' | awk -F'"' -v service="$SERVICE" '
        function value(key, text) {
            text = $0
            if (!sub(".*\"" key "\":\"", "", text)) return ""
            sub(/".*/, "", text)
            return text
        }
        /"active":/ { ours = ($4 == service); if (ours && value("served_last")) print "last", value("served_last") }
        ours && /"state":/ { name = $4; print "pool", name, value("state"), /"safe_to_stop":true/ ? "safe" : "used", value("version") }
        ours && /^"address":/ { port = $4; sub(/.*:/, "", port); print "peer", name, port }'
}

pool() { pools | grep "^pool $1 " | cut -d' ' -f"$2"; }
state() { pool "$1" 3; }
is_leaving() { case $(state "$1") in draining | kept) ;; *) return 1 ;; esac; }
is_safe() { [ "$(pool "$1" 4)" = safe ]; }
version() { pool "$1" 5-; }
peer_port() { awk -v name="$1" '$1 == "peer" && $2 == name { print $3; exit }' <<<"$all"; }

# --- the release ----------------------------------------------------------------------------------------------------------

phase=nothing promotion=

# Runs at every exit.
finish() {
    local code=$?
    trap '' INT TERM HUP
    [ -z "$promotion" ] || kill "$promotion" 2>/dev/null || true
    [ "$phase" = trying ] || exit "$code"
    # Interrupted or failed. If the pool was promoted nevertheless, it continues to serve: it was proven.
    $SWITCHOVER cancel "$SERVICE" >/dev/null 2>&1 9>&- || true
    if [ "$(state "$idle" || true)" = active ]; then
        say "$idle already serves, and $active still runs; to stop $active, run this again" >&2
        [ "$code" -ne 0 ] || code=1
    elif is_safe "$idle"; then
        say "stopping $idle" >&2
        "${kind}_stop" "$idle" || true
        "${kind}_restore" "$idle"
        if [ -n "$ran" ]; then "${kind}_start" "$idle"; fi
        say "left as it was: $active is active" >&2
    else
        say "$idle is not safe to stop, so it is not stopped; run this again when switchover status says that it is safe" >&2
    fi
    exit "$code"
}

release() {
    local code=0
    # A release that was killed may have left its promotion behind, one that was interrupted a drain. The lock says that none runs.
    if [ "$(state "$idle")" = proving ]; then
        say "cancelling the promotion of $idle, which an earlier release left behind"
        $SWITCHOVER cancel "$SERVICE" >/dev/null 9>&- || true
    fi
    if is_leaving "$idle"; then
        say "waiting until $idle has drained and $active has been observed"
        while is_leaving "$idle"; do sleep 0.2; done
    fi
    is_safe "$idle" || die "$idle is not safe to stop; run this again when switchover status says that it is"

    ran=
    if "${kind}_runs" "$idle"; then ran=yes; fi
    trap finish EXIT
    trap 'exit 129' HUP
    trap 'exit 130' INT
    trap 'exit 143' TERM

    say "$active is active; starting $what as $idle, version $version"
    "${kind}_keep" "$idle"
    phase=trying
    "${kind}_stop" "$idle"
    "${kind}_set" "$idle" "$what"
    if ! "${kind}_start" "$idle"; then
        say "$idle could not be started:" >&2
        tail -n 5 "$RELEASE_DIR/$idle.log" >&2
        exit 1
    fi

    # In the background, so that this script notices the end of the new process and handles signals without delay.
    $SWITCHOVER promote "$SERVICE" "$idle" --version "$version" --wait drained 9>&- &
    promotion=$!
    while kill -0 "$promotion" 2>/dev/null; do
        # If it ends after its promotion, switchover takes it back, and the command reports why.
        if ! "${kind}_runs" "$idle" && [ "$(state "$idle" || true)" = proving ]; then
            say "$idle has ended unexpectedly; the end of its log:" >&2
            "${kind}_why" "$idle"
            exit 1
        fi
        sleep 0.3
    done
    wait "$promotion" || code=$?
    promotion=
    [ "$code" -eq 0 ] || exit "$code"

    # Checks that the probes reached the process that this script started.
    if ! "${kind}_serves" "$idle"; then
        say "$idle was promoted, but the started process does not listen on its port; going back to $active" >&2
        $SWITCHOVER promote "$SERVICE" "$active" --wait drained 9>&- || true
        exit 1
    fi
    phase=promoted
    [ "$(version "$idle")" = "$version" ] || die "$idle serves, but switchover reports version \"$(version "$idle")\" and not \"$version\"; $active still runs"
    say "$idle serves $version; stopping $active"
    "${kind}_stop" "$active" || exit 1
    say "done"
}

# After a reboot: starts the jar of the pool that served last. The file can name another pool, whose release was not ready.
start() {
    local active=$active last
    last=$(awk '$1 == "last" { print $2 }' <<<"$all")
    case $last in blue | green) active=$last ;; esac
    jar_check "$active"
    if jar_runs "$active"; then
        say "$active already runs"
        return
    fi
    [ -e "$RELEASE_DIR/$active.jar" ] || die "$RELEASE_DIR/$active.jar does not exist: $active was not released with this script"
    say "starting $active"
    jar_start "$active"
    until jar_serves "$active"; do
        if ! jar_runs "$active"; then
            say "$active has ended unexpectedly; the end of its log:" >&2
            jar_why "$active"
            exit 1
        fi
        sleep 0.2
    done
    say "$active listens on port $(jar_port "$active")"
}

case "${1:-} $#" in
    "--help "* | "-h "*) usage; exit 0 ;;
    "jar 2") kind=jar what=$2; [ -f "$what" ] || die "there is no file $what" ;;
    "compose 2") kind=compose what=$2 ;;
    "start 1") kind=jar what= ;;
    *) usage >&2; exit 2 ;;
esac
if [ "$kind" = compose ]; then
    SWITCHOVER=${SWITCHOVER:-$COMPOSE exec -T switchover switchover}
else
    SWITCHOVER=${SWITCHOVER:-switchover}
fi
mkdir -p "$RELEASE_DIR"
RELEASE_DIR=$(cd "$RELEASE_DIR" && pwd)
exec 9>"$RELEASE_DIR/lock"
# Waits two seconds, because a sleeping child of a killed release may still hold the lock.
flock -w 2 9 || die "another release is running (it holds $RELEASE_DIR/lock)"

# After a reboot, switchover may start later than this script.
tries=1
[ "$1" != start ] || tries=60
until all=$(pools); do
    tries=$((tries - 1))
    [ "$tries" -gt 0 ] || die "switchover does not respond; check that it runs and that SWITCHOVER is correct ($SWITCHOVER)"
    sleep 1
done
active=$(awk '$1 == "pool" && $3 == "active" { print $2 }' <<<"$all")
case $active in
    blue) idle=green ;;
    green) idle=blue ;;
    *) die "the service $SERVICE has no active pool blue or green; its pools: $(awk '$1 == "pool" { printf "%s ", $2 }' <<<"$all")" ;;
esac

if [ "$1" = start ]; then
    start
else
    version=${VERSION:-$("${kind}_version" "$what")}
    "${kind}_check" "$active"
    "${kind}_check" "$idle"
    release
fi
