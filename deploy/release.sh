#!/usr/bin/env bash
# A release in one command: starts it as the idle colour, has switchover prove and promote it, stops the old one.
#
#   release.sh jar JAR          two ports of this host, a process each
#   release.sh compose VERSION  two services of a compose project, an image of this version
#   release.sh start            after a reboot: starts the jar of the colour that switchover serves
#
# If anything fails before the promotion, everything stays as it was, and the exit code is that of `switchover promote` (3: the
# release was not ready in time) or 1. It may be interrupted at any point and run again; the next run finishes what an interrupted
# one left. Only one runs at a time.
#
# Settings, from the environment:
#   SERVICE     the service in switchover's file, with the pools blue and green (default: shop)
#   SWITCHOVER  the command line of the running switchover
#               (default: switchover; for compose: $COMPOSE exec -T switchover switchover)
#   RELEASE_DIR where the lock, pids, jars and logs are (default: ./release)
#   STOP_AFTER  seconds that the old one has after SIGTERM, longer than its own graceful shutdown (default: 40)
#   VERSION     the release's name in status and metrics (default: for compose the argument; for shop-2.0.0.jar: 2.0.0)
#   jar:        BLUE_PORT, GREEN_PORT (default: the port of the pool's first peer), JAVA (java), JAVA_OPTS
#               ADOPT=1: a process that holds one of the ports and was not started by this script is taken over, and stopped when
#               its colour is replaced
#   compose:    COMPOSE ("docker compose"), run in the folder of the compose file, whose .env names BLUE_VERSION and GREEN_VERSION
set -euo pipefail

# A background job of a script ignores SIGINT, and no shell can trap a signal that was ignored when it began.
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

# When a process was started, in ticks since the boot; nothing if it does not run.
started() { { sed 's/.*) //' "/proc/$1/stat" | awk '$1 != "Z" { print $20 }'; } 2>/dev/null; }

command_of() { { tr '\0' ' ' <"/proc/$1/cmdline" | cut -c 1-100; } 2>/dev/null; }

# The pids that listen on a port, on any address; "hidden" for one that this user may not see.
listeners() {
    local inode pids
    { awk -v port="$(printf '%04X' "$1")" '$4 == "0A" && $2 ~ (":" port "$") { print $10 }' /proc/net/tcp /proc/net/tcp6 2>/dev/null || true; } |
        while read -r inode; do
            pids=$(find /proc/[0-9]*/fd -maxdepth 1 -lname "socket:\[$inode\]" 2>/dev/null | cut -d/ -f3) || true
            echo "${pids:-hidden}"
        done | sort -u
}

descends() { # PID ANCESTOR: whether it is that process, or a child of it
    local pid=$1
    while [ "${pid:-0}" -gt 1 ]; do
        [ "$pid" != "$2" ] || return 0
        pid=$({ awk '/^PPid:/ { print $2 }' "/proc/$pid/status"; } 2>/dev/null) || return 1
    done
    return 1
}

# --- one application, by its colour: a process of this host ---------------------------------------------------------------

jar_record() { echo "$2 $(started "$2") $(boot)" >"$RELEASE_DIR/$1.pid"; }

jar_pid() { # COLOUR: its process, if this script started or adopted it and it runs
    local pid start since
    [ -e "$RELEASE_DIR/$1.pid" ] || return 1
    read -r pid start since <"$RELEASE_DIR/$1.pid" || return 1
    # The kernel reuses pids: the start time tells another process with the same one.
    [ "$since" = "$(boot)" ] && [ -n "$start" ] && [ "$start" = "$(started "$pid")" ] && echo "$pid"
}

jar_port() {
    if [ "$1" = blue ] && [ -n "${BLUE_PORT:-}" ]; then echo "$BLUE_PORT"
    elif [ "$1" = green ] && [ -n "${GREEN_PORT:-}" ]; then echo "$GREEN_PORT"
    else peer_port "$1"; fi
}

# The listeners of a colour's port that are not its own process.
jar_strangers() {
    local own holder
    own=$(jar_pid "$1" || true)
    for holder in $(listeners "$(jar_port "$1")"); do
        if [ "$holder" = hidden ] || [ -z "$own" ] || ! descends "$holder" "$own"; then echo "$holder"; fi
    done
}

# Refuses a port that another process holds: it would answer the probes of a release that cannot start.
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
# An adopted process had no jar here, so there is none to go back to.
jar_restore() { if [ -e "$RELEASE_DIR/$1.jar.before" ]; then mv "$RELEASE_DIR/$1.jar.before" "$RELEASE_DIR/$1.jar"; else rm -f "$RELEASE_DIR/$1.jar"; fi; }

jar_start() {
    local options
    [ -e "$RELEASE_DIR/$1.jar" ] || return 0
    read -ra options <<<"${JAVA_OPTS:-}"
    [ ! -e "$RELEASE_DIR/$1.log" ] || mv "$RELEASE_DIR/$1.log" "$RELEASE_DIR/$1.log.before"
    # In a session of its own, so that Ctrl-C here does not reach it, and without the lock, which would outlive this script.
    SERVER_PORT=$(jar_port "$1") setsid nohup "${JAVA:-java}" "${options[@]}" -jar "$RELEASE_DIR/$1.jar" \
        </dev/null >"$RELEASE_DIR/$1.log" 2>&1 9>&- &
    jar_record "$1" $!
}

# Whether its own process, and no other, listens on its port.
jar_serves() {
    jar_runs "$1" && [ -n "$(listeners "$(jar_port "$1")")" ] && [ -z "$(jar_strangers "$1")" ]
}

jar_stop() {
    local pid waited=0 stranger
    if ! pid=$(jar_pid "$1"); then
        stranger=$(jar_strangers "$1" | head -n 1)
        [ -n "$stranger" ] || return 0
        say "$1 is not stopped: pid $stranger holds its port, and this script did not start it ($(command_of "$stranger"))" >&2
        return 1
    fi
    kill -TERM "$pid" 2>/dev/null || return 0
    while jar_runs "$1"; do
        if [ "$waited" -eq $((STOP_AFTER * 10)) ]; then
            say "$1 did not end in ${STOP_AFTER}s and is killed"
            kill -KILL "$pid" 2>/dev/null || true
        fi
        sleep 0.1
        waited=$((waited + 1))
    done
    rm -f "$RELEASE_DIR/$1.pid"
}

jar_why() { tail -n 5 "$RELEASE_DIR/$1.log" >&2; }

# --- one application, by its colour: a service of the compose project -----------------------------------------------------

compose() { $COMPOSE "$@" 9>&-; }
compose_variable() { echo "${1^^}_VERSION"; }
compose_check() { :; }
compose_version() { echo "$1"; }
compose_runs() { [ -n "$(compose exec -T "app-$1" true 2>/dev/null && echo yes)" ]; }
compose_serves() { compose_runs "$1"; }
# -p: .env may hold secrets, so its mode stays.
compose_keep() { cp -p .env "$RELEASE_DIR/$1.env.before" 2>/dev/null || : >"$RELEASE_DIR/$1.env.before"; }
compose_restore() { if [ -e "$RELEASE_DIR/$1.env.before" ]; then mv "$RELEASE_DIR/$1.env.before" .env; fi; }
compose_start() { compose up -d --no-deps "app-$1" >"$RELEASE_DIR/$1.log" 2>&1; }
compose_stop() { compose stop -t "$STOP_AFTER" "app-$1" >"$RELEASE_DIR/$1.log" 2>&1; }
compose_why() { compose logs --tail 5 "app-$1" >&2; }

compose_set() {
    local variable
    variable=$(compose_variable "$1")
    # Copied first, for its mode; then replaced in one step.
    [ ! -e .env ] || cp -p .env .env.new
    { grep -v "^$variable=" .env 2>/dev/null || true; echo "$variable=$2"; } >.env.new
    mv .env.new .env
    # A container that exists would be started again as it was.
    compose rm -f -s "app-$1" >"$RELEASE_DIR/$1.log" 2>&1 || true
}

# --- switchover -----------------------------------------------------------------------------------------------------------

# For each pool of the service a line `pool NAME STATE SAFE VERSION`, and for each of its peers a line `peer NAME PORT`.
pools() {
    $SWITCHOVER status --json 9>&- | tr '{' '\n' | awk -F'"' -v service="$SERVICE" '
        function value(key, text) {
            text = $0
            if (!sub(".*\"" key "\":\"", "", text)) return ""
            sub(/".*/, "", text)
            return text
        }
        /"active":/ { ours = ($4 == service) }
        ours && /"state":/ { name = $4; print "pool", name, value("state"), /"safe_to_stop":true/ ? "safe" : "used", value("version") }
        ours && /^"address":/ { port = $4; sub(/.*:/, "", port); print "peer", name, port }'
}

pool() { pools | grep "^pool $1 " | cut -d' ' -f"$2"; }
state() { pool "$1" 3; }
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
    # Interrupted or refused. If it is promoted nevertheless, it stays: it was proven.
    $SWITCHOVER cancel "$SERVICE" >/dev/null 2>&1 9>&- || true
    if [ "$(state "$idle" || true)" = active ]; then
        say "$idle serves already; the old one ($active) still runs: run this again to stop it" >&2
        [ "$code" -ne 0 ] || code=1
    elif is_safe "$idle"; then
        "${kind}_stop" "$idle" || true
        "${kind}_restore" "$idle"
        if [ -n "$ran" ]; then "${kind}_start" "$idle"; fi
        say "left as it was: $active is active" >&2
    else
        say "switchover does not say that $idle is safe to stop, so nothing is stopped; when it does, run this again" >&2
    fi
    exit "$code"
}

release() {
    local code=0
    # An interrupted release may have left a drain behind.
    if [ "$(state "$idle")" = draining ]; then
        say "$idle still drains, waiting for it"
        while [ "$(state "$idle")" = draining ]; do sleep 0.2; done
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

    # In the background, so that the end of the release's process is seen at once, and signals are handled at once.
    $SWITCHOVER promote "$SERVICE" "$idle" --version "$version" --wait drained 9>&- &
    promotion=$!
    while kill -0 "$promotion" 2>/dev/null; do
        if ! "${kind}_runs" "$idle" && [ "$(state "$idle" || true)" != active ]; then
            say "$idle has ended by itself; its last words:" >&2
            "${kind}_why" "$idle"
            exit 1
        fi
        sleep 0.3
    done
    wait "$promotion" || code=$?
    promotion=
    [ "$code" -eq 0 ] || exit "$code"

    # What was proven has to be what was started.
    if ! "${kind}_serves" "$idle"; then
        say "$idle was promoted, but what was started does not listen on its port; going back to $active" >&2
        $SWITCHOVER promote "$SERVICE" "$active" --wait drained 9>&- || true
        exit 1
    fi
    phase=promoted
    [ "$(version "$idle")" = "$version" ] || die "$idle serves, but switchover reports version \"$(version "$idle")\" and not \"$version\"; $active still runs"
    say "$idle serves $version; stopping $active"
    "${kind}_stop" "$active" || exit 1
    say "done"
}

# After a reboot: what was released runs again.
start() {
    jar_check "$active"
    if jar_runs "$active"; then
        say "$active runs already"
        return
    fi
    [ -e "$RELEASE_DIR/$active.jar" ] || die "there is no $RELEASE_DIR/$active.jar: $active was not released here"
    say "starting $active"
    jar_start "$active"
    until jar_serves "$active"; do
        if ! jar_runs "$active"; then
            say "$active has ended by itself; its last words:" >&2
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
# Two seconds, because the last child of a killed release may hold it for as long as it sleeps.
flock -w 2 9 || die "another release is running (it holds $RELEASE_DIR/lock)"

# After a reboot switchover may start later than this.
tries=1
[ "$1" != start ] || tries=60
until all=$(pools); do
    tries=$((tries - 1))
    [ "$tries" -gt 0 ] || die "switchover does not answer: is it running, and is SWITCHOVER right ($SWITCHOVER)?"
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
