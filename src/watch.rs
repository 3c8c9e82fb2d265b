//! Watches the configuration file for changes of any kind, and sends a reload to the controller once a save is complete.
//!
//! Editors rename over the file, `kubectl` swaps a symbolic link two folders up, a bind mount keeps the old inode, some file
//! systems send no events, and a save can be seen half done. So events only trigger a look; the content decides, and is read
//! again at least every two seconds. This module never parses: whether the text is valid is for the controller to say.

use std::{
    collections::BTreeSet,
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::Duration,
};

use log::warn;
use notify::{
    Event, EventKind, RecursiveMode, Watcher as _,
    event::{AccessKind, AccessMode},
};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, timeout, timeout_at},
};

use crate::controller::{Command, Commands, Trigger};

/// Events come in bursts; this much silence ends a burst.
const DEBOUNCE: Duration = Duration::from_millis(25);
/// How often the content is compared without any event.
const POLL_INTERVAL: Duration = Duration::from_secs(2);
/// How long a file that looks half written, empty or missing has to stay so before it counts as a change.
const SETTLE: Duration = Duration::from_secs(1);

/// The file as it was read.
#[derive(Clone, PartialEq)]
struct Seen {
    /// Device and inode; none for a file that cannot be read.
    file: Option<(u64, u64)>,
    /// None for a file that cannot be read.
    text: Option<Vec<u8>>,
}

/// Watches `path` until the controller has gone. `written` is the text that the controller began with, and later each text that
/// it wrote itself: what differs from the latest of these is a change, even if it is what was read before.
pub async fn run(path: PathBuf, written: watch::Receiver<String>, commands: Commands) {
    let (sender, events) = mpsc::unbounded_channel();
    follow(path, FileEvents::new(sender), events, written, commands).await;
}

async fn follow(
    path: PathBuf,
    mut file_events: FileEvents,
    mut events: mpsc::UnboundedReceiver<bool>,
    mut written: watch::Receiver<String>,
    commands: Commands,
) {
    file_events.arm(&path);
    let mut announced = Seen { text: Some(written.borrow_and_update().clone().into_bytes()), ..Seen::read(&path) };
    loop {
        let mut closed = quiet(&mut events, Instant::now() + POLL_INTERVAL).await;
        // Re-arm before looking: a link may lead elsewhere now, and what changes from here on must be seen.
        file_events.arm(&path);
        let mut seen = Seen::read(&path);
        if written.has_changed().unwrap_or(false) {
            announced.text = Some(written.borrow_and_update().clone().into_bytes());
        }
        if seen.text == announced.text {
            announced.file = seen.file;
            continue;
        }
        let mut since = Instant::now();
        while !(closed && (seen.is_replaced(&announced) || seen.is_whole(&announced))) {
            // Perhaps half written: it has to stay as it is for a while, whatever else happens in its folder.
            closed = quiet(&mut events, since + SETTLE).await;
            file_events.arm(&path);
            let now = Seen::read(&path);
            if now != seen {
                (seen, since) = (now, Instant::now());
            } else if since.elapsed() >= SETTLE {
                break;
            }
        }
        if seen.text == announced.text {
            continue;
        }
        announced = seen;
        if commands.send(Command::Reload { trigger: Trigger::FileChanged, reply: None }).await.is_err() {
            return;
        }
    }
}

/// Waits until `deadline` for events, then for the silence after them. Returns whether the last event was a rename, or a writer
/// that closed the file.
async fn quiet(events: &mut mpsc::UnboundedReceiver<bool>, deadline: Instant) -> bool {
    let Ok(Some(mut whole)) = timeout_at(deadline, events.recv()).await else {
        return false;
    };
    while let Ok(Some(next)) = timeout(DEBOUNCE, events.recv()).await {
        whole = next;
    }
    whole
}

impl Seen {
    fn read(path: &Path) -> Self {
        let read = || -> io::Result<Self> {
            let meta = fs::metadata(path)?;
            Ok(Self { file: Some((meta.dev(), meta.ino())), text: Some(fs::read(path)?) })
        };
        read().unwrap_or(Self { file: None, text: None })
    }

    /// Put in the place of what was there before, by a rename or a link: then it was whole when it came.
    fn is_replaced(&self, before: &Self) -> bool {
        self.file.is_some() && before.file.is_some() && self.file != before.file && self.has_content()
    }

    /// Whether a file that was written in place looks as if nothing were missing at its end: as many lines as before and, as
    /// before, the last one ended.
    fn is_whole(&self, before: &Self) -> bool {
        let (Some(text), Some(before)) = (&self.text, &before.text) else {
            return false;
        };
        let lines = |text: &[u8]| text.iter().filter(|byte| **byte == b'\n').count();
        self.has_content() && lines(text) >= lines(before) && text.ends_with(b"\n")
    }

    fn has_content(&self) -> bool {
        self.text.as_ref().is_some_and(|text| !text.trim_ascii().is_empty())
    }
}

/// The system's file events for every folder on the way to the file.
struct FileEvents {
    watcher: Option<notify::RecommendedWatcher>,
    folders: BTreeSet<PathBuf>,
}

impl FileEvents {
    fn new(sender: mpsc::UnboundedSender<bool>) -> Self {
        let forward = move |event: notify::Result<Event>| {
            let whole = match event {
                // Our own reading, among others.
                Ok(Event { kind: EventKind::Access(kind), .. }) if kind != AccessKind::Close(AccessMode::Write) => return,
                Ok(Event { kind: EventKind::Modify(notify::event::ModifyKind::Data(_)), .. }) => false,
                Ok(_) => true,
                Err(e) => {
                    warn!("a file event was lost error={e}");
                    false
                }
            };
            // The receiver has gone when the process ends.
            sender.send(whole).unwrap_or_default();
        };
        let watcher = notify::recommended_watcher(forward)
            .map_err(|e| warn!("no file events here, looking every {}s error={e}", POLL_INTERVAL.as_secs()))
            .ok();
        Self { watcher, folders: BTreeSet::new() }
    }

    /// Watches the folder of the file, of every link on the way to it and of the file behind them, and no others.
    fn arm(&mut self, path: &Path) {
        let Some(watcher) = &mut self.watcher else {
            return;
        };
        let wanted = folders(path);
        for folder in self.folders.difference(&wanted) {
            // It may have gone, and its watch with it.
            watcher.unwatch(folder).unwrap_or_default();
        }
        for folder in wanted.difference(&self.folders) {
            if let Err(e) = watcher.watch(folder, RecursiveMode::NonRecursive) {
                warn!("no file events for {}, looking every {}s error={e}", folder.display(), POLL_INTERVAL.as_secs());
            }
        }
        self.folders = wanted;
    }
}

/// Every folder in which a change can change what `path` leads to.
fn folders(path: &Path) -> BTreeSet<PathBuf> {
    /// As many links as the kernel follows.
    const LINKS: usize = 40;
    let mut folders = BTreeSet::new();
    let mut next = Some(path.to_path_buf());
    for _ in 0..LINKS {
        let Some(path) = next.take() else { break };
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        folders.insert(parent.to_path_buf());
        next = match fs::read_link(&path) {
            Ok(target) => Some(parent.join(target)),
            // Not a link itself, but its folder may be one, as `..data` is.
            Err(_) => fs::read_link(parent)
                .ok()
                .map(|target| parent.parent().unwrap_or(Path::new(".")).join(target).join(path.file_name().unwrap_or_default())),
        };
        if fs::read_link(parent).is_ok() {
            folders.insert(parent.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new(".")).to_path_buf());
        }
    }
    folders
}

#[cfg(test)]
mod tests {
    //! On a clock that the tests move, and with events that they send: how long a file is missing does not depend on the machine.

    use tempfile::TempDir;

    use super::*;

    const TEXT: &str = "one: 1\ntwo: 2\n";
    /// After a look, and long before the next one.
    const MOMENT: Duration = Duration::from_millis(300);

    struct Watched {
        path: PathBuf,
        events: mpsc::UnboundedSender<bool>,
        commands: mpsc::Receiver<Command>,
        _written: watch::Sender<String>,
        _folder: TempDir,
    }

    impl Watched {
        fn start() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("switchover.yaml");
            fs::write(&path, TEXT).unwrap();
            let (events, heard) = mpsc::unbounded_channel();
            let (written, texts) = watch::channel(TEXT.to_owned());
            let (sender, commands) = mpsc::channel(8);
            let file_events = FileEvents { watcher: None, folders: BTreeSet::new() };
            tokio::spawn(follow(path.clone(), file_events, heard, texts, sender));
            Self { path, events, commands, _written: written, _folder: folder }
        }

        /// Lets this much time pass; returns how many edits were announced in it.
        async fn announced_in(&mut self, time: Duration) -> usize {
            tokio::time::sleep(time).await;
            std::iter::from_fn(|| self.commands.try_recv().ok()).count()
        }

        /// Whether an edit that is seen at once, by its event, is announced before the file has settled.
        async fn is_announced_at_once(&mut self) -> bool {
            self.events.send(true).unwrap();
            self.announced_in(MOMENT).await == 1
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_file_that_is_missing_or_empty_for_a_moment_is_no_edit() {
        let mut watched = Watched::start();
        for gone in [|path: &Path| fs::remove_file(path).unwrap(), |path: &Path| fs::write(path, "").unwrap()] {
            gone(&watched.path);
            assert!(!watched.is_announced_at_once().await);
            fs::write(&watched.path, TEXT).unwrap();
            assert_eq!(watched.announced_in(POLL_INTERVAL * 5).await, 0);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn other_events_in_the_folder_do_not_hurry_it() {
        let mut watched = Watched::start();
        fs::remove_file(&watched.path).unwrap();
        assert!(!watched.is_announced_at_once().await);
        // An editor's own files, for example.
        assert!(!watched.is_announced_at_once().await);
        fs::write(&watched.path, TEXT).unwrap();
        assert_eq!(watched.announced_in(POLL_INTERVAL * 5).await, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_file_that_stays_missing_is_an_edit_and_so_is_its_return() {
        let mut watched = Watched::start();
        fs::remove_file(&watched.path).unwrap();
        assert!(!watched.is_announced_at_once().await);
        assert_eq!(watched.announced_in(SETTLE).await, 1);
        fs::write(&watched.path, TEXT).unwrap();
        assert_eq!(watched.announced_in(POLL_INTERVAL * 5).await, 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_whole_edit_is_announced_at_once_and_a_shorter_one_when_it_has_settled() {
        let mut watched = Watched::start();
        fs::write(&watched.path, "one: 1\ntwo: 3\n").unwrap();
        assert!(watched.is_announced_at_once().await);
        fs::write(&watched.path, "one: 1\n").unwrap();
        assert!(!watched.is_announced_at_once().await);
        assert_eq!(watched.announced_in(SETTLE).await, 1);
    }

    #[tokio::test(start_paused = true)]
    async fn an_edit_without_events_is_found_by_looking() {
        let mut watched = Watched::start();
        fs::write(&watched.path, "one: 1\ntwo: 3\n").unwrap();
        assert_eq!(watched.announced_in(POLL_INTERVAL + SETTLE + MOMENT).await, 1);
    }
}
