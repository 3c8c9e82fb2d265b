//! Replaces the configuration file without losing edits that other programs save at the same time.
//!
//! Called by the controller for `promote`, on a thread that may block. A reader sees the old text or the new text, never a
//! half-written file. Between the read and the replacement there is an fsync, which may take seconds: a save in this time is
//! detected and kept, and the change is repeated on the saved text.

use std::{
    fs::{self, File, Metadata, OpenOptions},
    io::{self, ErrorKind, Seek, Write},
    os::unix::fs::{MetadataExt, PermissionsExt, chown},
    path::{Path, PathBuf},
    thread,
    time::{Duration, SystemTime},
};

use rustix::{
    fs::{CWD, RenameFlags, renameat_with},
    io::Errno,
    process::{getegid, geteuid, getgroups},
};

use super::file;

/// Maximum number of attempts after concurrent saves.
const ATTEMPTS: usize = 20;
/// Delay before the next attempt with a missing or invalid file: an editor may be in the middle of a save.
const HALF_SAVED: Duration = Duration::from_millis(50);
/// Maximum number of exchanges in a row that a concurrent save interrupts; each takes a few microseconds.
const EXCHANGES: usize = 1000;

/// The reason why a file was not changed.
#[derive(Debug)]
pub enum WriteError {
    /// It contains no valid configuration; with the problems.
    Invalid(String),
    /// Its new content does not allow the change; with the reason.
    Overtaken(String),
    /// It cannot be read or written.
    Io(io::Error),
}

/// Checks whether the file can be opened for writing. Writes nothing.
///
/// # Errors
/// When it cannot be opened.
pub fn check_writable(path: &Path) -> io::Result<()> {
    OpenOptions::new().write(true).open(path).map(drop)
}

/// Changes the file with `change`, which returns the new text and a value; returns that value. Follows links, and keeps mode and
/// owner.
///
/// Writes the file in place if it cannot be replaced: it is a mount point, its folder is not writable, or its owner cannot be
/// kept.
///
/// # Errors
/// When the change is not possible, or the file can be neither replaced nor written. The file is then unchanged.
pub fn update<T>(path: &Path, change: impl Fn(&str) -> Result<(String, T), WriteError>) -> Result<T, WriteError> {
    let mut attempts = 1..=ATTEMPTS;
    loop {
        let last = attempts.next().is_none();
        let outcome = Seen::read(path).map_err(WriteError::Io).and_then(|seen| {
            let (text, made) = change(&seen.text)?;
            Ok(replace_or_write(path, &seen, &text).map_err(WriteError::Io)?.then_some(made))
        });
        match outcome {
            Ok(Some(made)) => return Ok(made),
            Ok(None) if last => return Err(WriteError::Overtaken("other programs keep saving the file; try again".to_owned())),
            Ok(None) => {}
            Err(WriteError::Invalid(_)) if !last => thread::sleep(HALF_SAVED),
            Err(WriteError::Io(e)) if !last && e.kind() == ErrorKind::NotFound => thread::sleep(HALF_SAVED),
            Err(failure) => return Err(failure),
        }
    }
}

/// Replaces a file that has no other writer. Its content is always the old text or the new text.
///
/// # Errors
/// When it cannot be written.
pub fn replace_own(path: &Path, text: &str) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    let mut new = tempfile::Builder::new().prefix(".switchover-").tempfile_in(folder)?;
    new.write_all(text.as_bytes())?;
    new.as_file().sync_all()?;
    new.persist(path).map_err(|e| e.error)?;
    File::open(folder)?.sync_all()
}

/// A file at the time of one read.
#[derive(PartialEq)]
struct Seen {
    /// Its path after following links.
    real: PathBuf,
    /// Device, inode, size and time of the last write.
    file: (u64, u64, u64, Option<SystemTime>),
    text: String,
}

impl Seen {
    fn read(path: &Path) -> io::Result<Self> {
        let real = fs::canonicalize(path)?;
        let meta = fs::metadata(&real)?;
        let text = String::from_utf8(file::read(&real, file::LARGEST)?);
        let text = text.map_err(|_| io::Error::new(ErrorKind::InvalidData, "is not UTF-8 text"))?;
        Ok(Self { real, file: (meta.dev(), meta.ino(), meta.size(), meta.modified().ok()), text })
    }

    /// Whether both are the same file with the same content; the path may differ.
    fn same_content(&self, other: &Self) -> bool {
        self.file == other.file && self.text == other.text
    }
}

/// Returns false, without a change, if the file differs from `seen`.
fn replace_or_write(path: &Path, seen: &Seen, text: &str) -> io::Result<bool> {
    match replace(path, seen, text) {
        Err(e) if matches!(e.kind(), ErrorKind::ResourceBusy | ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem) => {
            if !is_as(path, seen)? {
                return Ok(false);
            }
            write_in_place(&seen.real, text).map(|()| true)
        }
        outcome => outcome,
    }
}

fn is_as(path: &Path, seen: &Seen) -> io::Result<bool> {
    match Seen::read(path) {
        Ok(now) => Ok(now == *seen),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e),
    }
}

fn replace(path: &Path, seen: &Seen, text: &str) -> io::Result<bool> {
    let real = &seen.real;
    let folder = real.parent().unwrap_or(Path::new("/"));
    let before = fs::metadata(real)?;
    let mut new = tempfile::Builder::new().prefix(".switchover-").tempfile_in(folder)?;
    new.write_all(text.as_bytes())?;
    keep_owner(new.path(), &before)?;
    new.as_file().set_permissions(fs::Permissions::from_mode(before.mode() & 0o7777))?;
    new.as_file().sync_all()?;
    if !is_as(path, seen)? {
        return Ok(false);
    }
    let new = new.into_temp_path();
    match exchange(&new, real) {
        Ok(()) => {
            let displaced = Seen::read(&new)?;
            if !displaced.same_content(seen) {
                put_back(new, real, displaced)?;
                return Ok(false);
            }
        }
        // Some file systems cannot exchange two names. With a rename, a save within a few microseconds can be lost.
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => new.persist(real).map_err(|e| e.error)?,
        Err(e) => return Err(e.into()),
    }
    // Makes the rename survive a power failure.
    File::open(folder)?.sync_all()?;
    Ok(true)
}

/// Puts a displaced file back, because it is newer than the text that was read. The file that this displaces must be the one
/// placed before; otherwise it is an even newer save, and is put back in turn.
fn put_back(new: tempfile::TempPath, real: &Path, mut newest: Seen) -> io::Result<()> {
    let mut placed = Seen::read(real)?.file.1;
    for _ in 0..EXCHANGES {
        if let Err(e) = exchange(&new, real) {
            // The newest save is now under the temporary name, and must not be removed.
            let kept = new.keep().map_err(|e| e.error)?;
            return Err(io::Error::other(format!("{e}; what was saved last is in {}", kept.display())));
        }
        let displaced = Seen::read(&new)?;
        if displaced.file.1 == placed {
            return Ok(());
        }
        placed = newest.file.1;
        newest = displaced;
    }
    Err(io::Error::other("other programs keep saving the file; try again"))
}

fn exchange(a: &Path, b: &Path) -> rustix::io::Result<()> {
    renameat_with(CWD, a, CWD, b, RenameFlags::EXCHANGE)
}

/// Keeps the owner of the file; if that is not permitted, the file is written in place. Calls chown only for changes that may be
/// permitted, because a seccomp filter may kill a process for others.
fn keep_owner(new: &Path, before: &Metadata) -> io::Result<()> {
    let ours = fs::metadata(new)?;
    let owner = (ours.uid() != before.uid()).then(|| before.uid());
    let group = (ours.gid() != before.gid()).then(|| before.gid());
    if owner.is_none() && group.is_none() {
        return Ok(());
    }
    let member = |group: u32| getegid().as_raw() == group || getgroups().is_ok_and(|all| all.iter().any(|g| g.as_raw() == group));
    if !geteuid().is_root() && (owner.is_some() || !group.is_some_and(member)) {
        return Err(ErrorKind::PermissionDenied.into());
    }
    chown(new, owner, group)
}

fn write_in_place(path: &Path, text: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).open(path)?;
    file.rewind()?;
    file.write_all(text.as_bytes())?;
    file.set_len(text.len() as u64)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    fn add(line: &str) -> impl Fn(&str) -> Result<(String, ()), WriteError> {
        move |text| Ok((format!("{text}{line}\n"), ()))
    }

    #[test]
    fn links_are_followed_and_mode_and_owner_kept() {
        let folder = tempfile::tempdir().unwrap();
        let (file, link) = (folder.path().join("real.yaml"), folder.path().join("link.yaml"));
        fs::write(&file, "old\n").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
        let root = geteuid().is_root();
        if root {
            chown(&file, Some(12), Some(34)).unwrap();
        }
        std::os::unix::fs::symlink("real.yaml", &link).unwrap();
        update(&link, add("new")).unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        let meta = fs::metadata(&file).unwrap();
        assert_eq!((fs::read_to_string(&file).unwrap().as_str(), meta.mode() & 0o777), ("old\nnew\n", 0o640));
        assert!(!root || (meta.uid(), meta.gid()) == (12, 34));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2, "nothing is left behind");
    }

    /// Saves after the file was read and before it is replaced. On a slow disk, the fsync in between takes seconds.
    #[test]
    fn a_save_while_the_disk_is_slow_is_kept_however_it_is_made() {
        let in_place = |path: &Path| fs::write(path, "saved\n").unwrap();
        let renamed = |path: &Path| {
            fs::write(path.with_extension("new"), "saved\n").unwrap();
            fs::rename(path.with_extension("new"), path).unwrap();
        };
        // Same size, same time: only the content differs.
        let unnoticed = |path: &Path| {
            let time = fs::metadata(path).unwrap().modified().unwrap();
            fs::write(path, "sav\n").unwrap();
            File::options().write(true).open(path).unwrap().set_modified(time).unwrap();
        };
        for (save, kept) in [(&in_place as &dyn Fn(&Path), "saved\n"), (&renamed, "saved\n"), (&unnoticed, "sav\n")] {
            let folder = tempfile::tempdir().unwrap();
            let file = folder.path().join("c.yaml");
            fs::write(&file, "old\n").unwrap();
            let saves = Cell::new(0);
            let change = |text: &str| {
                if saves.replace(saves.get() + 1) == 0 {
                    save(&file);
                }
                add("new")(text)
            };
            update(&file, change).unwrap();
            assert_eq!(fs::read_to_string(&file).unwrap(), format!("{kept}new\n"));
            assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing is left behind");
        }
    }

    #[test]
    fn a_file_that_is_saved_all_the_time_is_left_to_those_who_save_it() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("c.yaml");
        fs::write(&file, "0\n").unwrap();
        let saves = Cell::new(0);
        let outcome = update(&file, |text| {
            saves.set(saves.get() + 1);
            fs::write(&file, format!("{}\n", saves.get())).unwrap();
            add("new")(text)
        });
        assert!(matches!(outcome, Err(WriteError::Overtaken(_))));
        assert_eq!(fs::read_to_string(&file).unwrap(), format!("{}\n", saves.get()));
    }

    #[test]
    fn what_an_exchange_displaces_goes_back_if_it_is_newer() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("c.yaml");
        fs::write(&file, "saved\n").unwrap();
        let ours = tempfile::Builder::new().tempfile_in(folder.path()).unwrap();
        fs::write(ours.path(), "ours\n").unwrap();
        let ours = ours.into_temp_path();
        exchange(&ours, &file).unwrap();
        let newest = Seen::read(&ours).unwrap();
        put_back(ours, &file, newest).unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "saved\n");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing is left behind");
    }

    #[test]
    fn a_write_in_place_leaves_nothing_of_a_longer_text() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("c.yaml");
        fs::write(&file, "a longer text").unwrap();
        write_in_place(&file, "short").unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "short");
        assert!(check_writable(&file).is_ok() && check_writable(&folder.path().join("none")).is_err());
    }
}
