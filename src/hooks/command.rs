//! Runs a program of the user: without a shell, in a process group of its own, with bounded output, and with nothing left running.
//!
//! The program is started and awaited on a blocking thread, which kills the rest of its group *before* it reaps the program: the
//! number of a reaped process may be that of another one a moment later. `tokio::process` reaps by itself, so it is not used.
//! Orphans of the group are reaped too, because switchover is their parent if it is process 1 of a container. A program that
//! leaves its process group (`setsid`) is not found again.

use std::{
    io::{self, PipeReader},
    os::{fd::OwnedFd, unix::process::CommandExt},
    path::Path,
    process::{Command, Stdio},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, WaitIdStatus, WaitOptions, kill_process_group, waitid, waitpgid};
use tokio::{io::AsyncReadExt, net::unix::pipe, task::spawn_blocking, time::timeout};

use super::{OUTPUT_KEPT, shown};

/// What of the environment of switchover the program gets. Not all of it, which may hold secrets.
const INHERITED: [&str; 3] = ["PATH", "HOME", "LANG"];
/// How long a killed program is waited for. Only a program that waits for a device takes longer to die.
const KILLED_WITHIN: Duration = Duration::from_secs(1);
/// How long the end of the output is waited for after the program has ended. It follows at once, unless a process has left the group.
const OUTPUT_WITHIN: Duration = Duration::from_secs(1);

/// The process group of a program. The thread that awaits the program and the future that bounds it share it.
#[derive(Default)]
struct Group(Mutex<State>);

#[derive(Default)]
enum State {
    #[default]
    Starting,
    Running(Pid),
    /// It has ended or has to end.
    Over,
}

/// Kills the group when it is dropped.
struct KillOnDrop(Arc<Group>);

/// The beginning of the output, standard output and standard error together.
struct Output {
    pipe: pipe::Receiver,
    kept: Vec<u8>,
}

/// Runs a program with these arguments and additional variables, in `folder`, for `limit` at most. Dropping the future kills it.
///
/// # Errors
/// When it cannot be started, exits with another status than 0, or does not exit in time; with the beginning of its output.
pub(super) async fn run(program: &[String], facts: &[(&str, String)], folder: &Path, limit: Duration) -> Result<(), String> {
    let (name, arguments) = program.split_first().ok_or("names no program")?;
    let (command, reader) = prepare(name, arguments, facts, folder).map_err(|e| format!("cannot be started: {e}"))?;
    let mut output = Output::new(reader).map_err(|e| format!("cannot be started: {e}"))?;
    let group = Arc::new(Group::default());
    let kill = KillOnDrop(Arc::clone(&group));
    let mut ended = spawn_blocking(move || group.run(command));
    let in_time = timeout(limit, async {
        tokio::select! {
            ended = &mut ended => ended,
            () = output.read() => (&mut ended).await,
        }
    });
    let outcome = in_time.await;
    drop(kill);
    let Ok(outcome) = outcome else {
        // The group is killed already; this only waits until it is gone.
        let _gone = timeout(KILLED_WITHIN, ended).await.is_ok();
        let limit = humantime::format_duration(limit);
        return Err(format!("has not ended within {limit} and was killed{}", output.quoted().await));
    };
    let outcome = outcome.unwrap_or_else(|e| Err(io::Error::other(e)));
    match outcome.map_err(|e| format!("cannot be started: {e}"))? {
        status if status.exit_status() == Some(0) => Ok(()),
        status => match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => Err(format!("exited with {code}{}", output.quoted().await)),
            (None, signal) => Err(format!("was ended by signal {}{}", signal.unwrap_or_default(), output.quoted().await)),
        },
    }
}

fn prepare(name: &str, arguments: &[String], facts: &[(&str, String)], folder: &Path) -> io::Result<(Command, PipeReader)> {
    // Relative to the current folder of switchover, if the folder is.
    let folder = std::path::absolute(if folder.as_os_str().is_empty() { Path::new(".") } else { folder })?;
    // Without a slash it is looked up in PATH, like execvp(3).
    let mut command = if name.contains('/') { Command::new(folder.join(name)) } else { Command::new(name) };
    let (reader, writer) = io::pipe()?;
    let inherited = INHERITED.iter().filter_map(|name| Some((*name, std::env::var_os(name)?)));
    command.args(arguments).env_clear().envs(inherited).envs(facts.iter().map(|(name, value)| (name, value)));
    command.current_dir(folder).process_group(0);
    command.stdin(Stdio::null()).stdout(writer.try_clone()?).stderr(writer);
    Ok((command, reader))
}

impl Group {
    /// Starts the program, waits for its end, and ends what is left of its group.
    fn run(&self, mut command: Command) -> io::Result<WaitIdStatus> {
        if matches!(*self.0.lock(), State::Over) {
            return Err(io::Error::other("it was cancelled"));
        }
        let program = Pid::from_child(&command.spawn()?);
        // It holds the pipe, whose end would not be seen.
        drop(command);
        {
            let mut state = self.0.lock();
            let cancelled = matches!(*state, State::Over);
            *state = State::Running(program);
            if cancelled {
                drop(state);
                self.kill();
            }
        }
        // NOWAIT leaves it unreaped.
        let ended = loop {
            match waitid(WaitId::Pid(program), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT) {
                Ok(Some(ended)) => break Ok(ended),
                Ok(None) | Err(rustix::io::Errno::INTR) => {}
                Err(e) => break Err(e.into()),
            }
        };
        self.kill();
        // Until no child is left in the group.
        while !matches!(waitpgid(program, WaitOptions::empty()), Err(e) if e != rustix::io::Errno::INTR) {}
        ended
    }

    fn kill(&self) {
        if let State::Running(program) = std::mem::replace(&mut *self.0.lock(), State::Over) {
            // Fails only if no process is left in the group.
            kill_process_group(program, Signal::KILL).unwrap_or_default();
        }
    }
}

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        self.0.kill();
    }
}

impl Output {
    fn new(reader: PipeReader) -> io::Result<Self> {
        Ok(Self { pipe: pipe::Receiver::from_owned_fd(OwnedFd::from(reader))?, kept: Vec::new() })
    }

    /// Reads until the end, so that the program never waits for a reader, and keeps the beginning.
    async fn read(&mut self) {
        let mut buffer = vec![0; 16 * 1024];
        while let Ok(read @ 1..) = self.pipe.read(&mut buffer).await {
            self.keep(buffer.get(..read).unwrap_or_default());
        }
    }

    fn keep(&mut self, bytes: &[u8]) {
        let room = OUTPUT_KEPT.saturating_sub(self.kept.len());
        self.kept.extend(bytes.iter().take(room));
    }

    /// What the ended program has printed, after a colon.
    async fn quoted(&mut self) -> String {
        // What is in the pipe may not be read yet. A process that left the group may keep it open, and print without end.
        let _complete = timeout(OUTPUT_WITHIN, self.read()).await.is_ok();
        let shown = shown(&self.kept);
        if shown.is_empty() { String::new() } else { format!(": {shown}") }
    }
}
