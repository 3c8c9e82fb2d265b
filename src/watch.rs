//! Watches the configuration file for changes of any kind, and sends a reload to the controller once a save is complete.
//!
//! Editors rename over the file, `kubectl` swaps a symbolic link two folders up, a bind mount keeps the old inode, some file
//! systems send no events, and a save can be seen half done. Therefore an event only triggers a read, the content decides, and
//! the file is read at least every two seconds. This module never parses the text: the controller validates it. Reads may wait for a
//! slow disk, so it runs on a thread that does nothing else.

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

use crate::{
    config::file,
    controller::{Command, Commands, Trigger},
};

/// Events come in bursts; a pause of this length ends a burst.
const DEBOUNCE: Duration = Duration::from_millis(25);
/// How often the content is compared without an event.
const POLL_INTERVAL: Duration = Duration::from_secs(2);
/// How long a file that looks half written, or is empty or missing, has to stay unchanged before it counts as an edit.
const SETTLE_TIME: Duration = Duration::from_secs(1);

/// The identity and content of the file at one read.
#[derive(Clone, PartialEq)]
struct Seen {
    /// Device and inode; none for a file that cannot be read.
    file: Option<(u64, u64)>,
    /// None for a file that cannot be read.
    text: Option<Vec<u8>>,
}

/// Watches `path` until the controller ends. `written` holds the text that the controller started with, and later each text
/// that it wrote itself. A text that differs from the latest of these is an edit, even if it equals an older text.
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
        let mut closed = debounce(&mut events, Instant::now() + POLL_INTERVAL).await;
        // Arm before reading: a link may have a new target, and no change after the read may be missed.
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
            // The file may be half written: wait until it stays unchanged, whatever other events its folder sends.
            closed = debounce(&mut events, since + SETTLE_TIME).await;
            file_events.arm(&path);
            let now = Seen::read(&path);
            if now != seen {
                (seen, since) = (now, Instant::now());
            } else if since.elapsed() >= SETTLE_TIME {
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

/// Waits for an event until `deadline`, then for the pause after the burst. Returns whether the last event was a rename or the
/// close of a written file.
async fn debounce(events: &mut mpsc::UnboundedReceiver<bool>, deadline: Instant) -> bool {
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
            Ok(Self { file: Some((meta.dev(), meta.ino())), text: Some(file::read(path, file::LARGEST)?) })
        };
        read().unwrap_or(Self { file: None, text: None })
    }

    /// Whether the file was replaced as a whole, by a rename or by a new target of a link.
    fn is_replaced(&self, before: &Self) -> bool {
        self.file.is_some() && before.file.is_some() && self.file != before.file && self.has_content()
    }

    /// Whether a file that was written in place looks complete: at least as many lines as before, and the last line has its line
    /// feed.
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

/// File events of every folder on the path to the file.
struct FileEvents {
    watcher: Option<notify::RecommendedWatcher>,
    folders: BTreeSet<PathBuf>,
}

impl FileEvents {
    fn new(sender: mpsc::UnboundedSender<bool>) -> Self {
        let forward = move |event: notify::Result<Event>| {
            let whole = match event {
                // Reads, ours among them.
                Ok(Event { kind: EventKind::Access(kind), .. }) if kind != AccessKind::Close(AccessMode::Write) => return,
                Ok(Event { kind: EventKind::Modify(notify::event::ModifyKind::Data(_)), .. }) => false,
                Ok(_) => true,
                Err(e) => {
                    warn!("lost a file event error={e}");
                    false
                }
            };
            // Fails only at the end of the process, when the receiver is dropped.
            sender.send(whole).unwrap_or_default();
        };
        let watcher = notify::recommended_watcher(forward)
            .map_err(|e| warn!("no file events; polling every {}s instead error={e}", POLL_INTERVAL.as_secs()))
            .ok();
        Self { watcher, folders: BTreeSet::new() }
    }

    /// Watches the folders of the file, of every symbolic link on the path to it and of the link's target, and no others.
    fn arm(&mut self, path: &Path) {
        let Some(watcher) = &mut self.watcher else {
            return;
        };
        let wanted = folders(path);
        for folder in self.folders.difference(&wanted) {
            // Fails if the folder was removed, and its watch with it.
            watcher.unwatch(folder).unwrap_or_default();
        }
        for folder in wanted.difference(&self.folders) {
            if let Err(e) = watcher.watch(folder, RecursiveMode::NonRecursive) {
                warn!("no file events for {}; polling every {}s instead error={e}", folder.display(), POLL_INTERVAL.as_secs());
            }
        }
        self.folders = wanted;
    }
}

/// Every folder in which a change can change the target of `path`.
fn folders(path: &Path) -> BTreeSet<PathBuf> {
    /// The kernel follows as many links (path_resolution(7)).
    const LINKS: usize = 40;
    let mut folders = BTreeSet::new();
    let mut next = Some(path.to_path_buf());
    for _ in 0..LINKS {
        let Some(path) = next.take() else { break };
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        folders.insert(parent.to_path_buf());
        next = match fs::read_link(&path) {
            Ok(target) => Some(parent.join(target)),
            // Not a link; its folder may be one, as `..data` in Kubernetes.
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
    //! With a paused clock and injected events, so that no result depends on the speed of the machine.

    use tempfile::TempDir;

    use super::*;

    const TEXT: &str = "one: 1\ntwo: 2\n";
    /// Longer than the debounce time, and much shorter than the other intervals.
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

        /// Advances the clock; returns how many edits were announced meanwhile.
        async fn announced_in(&mut self, time: Duration) -> usize {
            tokio::time::sleep(time).await;
            std::iter::from_fn(|| self.commands.try_recv().ok()).count()
        }

        /// Whether an event makes the edit be announced before the settle time.
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
    async fn other_events_in_the_folder_do_not_shorten_the_settle_time() {
        let mut watched = Watched::start();
        fs::remove_file(&watched.path).unwrap();
        assert!(!watched.is_announced_at_once().await);
        // For example of an editor's temporary file.
        assert!(!watched.is_announced_at_once().await);
        fs::write(&watched.path, TEXT).unwrap();
        assert_eq!(watched.announced_in(POLL_INTERVAL * 5).await, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_file_that_stays_missing_is_an_edit_and_so_is_its_return() {
        let mut watched = Watched::start();
        fs::remove_file(&watched.path).unwrap();
        assert!(!watched.is_announced_at_once().await);
        assert_eq!(watched.announced_in(SETTLE_TIME).await, 1);
        fs::write(&watched.path, TEXT).unwrap();
        assert_eq!(watched.announced_in(POLL_INTERVAL * 5).await, 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_whole_edit_is_announced_at_once_and_a_shorter_one_after_the_settle_time() {
        let mut watched = Watched::start();
        fs::write(&watched.path, "one: 1\ntwo: 3\n").unwrap();
        assert!(watched.is_announced_at_once().await);
        fs::write(&watched.path, "one: 1\n").unwrap();
        assert!(!watched.is_announced_at_once().await);
        assert_eq!(watched.announced_in(SETTLE_TIME).await, 1);
    }

    #[tokio::test(start_paused = true)]
    async fn an_edit_without_events_is_found_by_polling() {
        let mut watched = Watched::start();
        fs::write(&watched.path, "one: 1\ntwo: 3\n").unwrap();
        assert_eq!(watched.announced_in(POLL_INTERVAL + SETTLE_TIME + MOMENT).await, 1);
    }
}
