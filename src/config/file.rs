//! Reads the files of a configuration: regular files only, up to a size limit.
//!
//! Opening a pipe waits for its writer, and reading a device may never end. Therefore the type of a file is checked before it is
//! opened, and no read takes more memory than its limit. The read itself may still wait for a slow disk.

use std::{
    fs::{self, File},
    io::{self, ErrorKind, Read},
    path::Path,
};

/// Maximum size of a configuration file, in bytes: more than any configuration needs, and small enough to be read at once.
pub const LARGEST: u32 = 1024 * 1024;

/// Reads a file of at most `limit` bytes.
///
/// # Errors
/// When it cannot be read, is not a regular file ([`ErrorKind::IsADirectory`], [`ErrorKind::InvalidInput`]), or is longer
/// ([`ErrorKind::FileTooLarge`]).
pub fn read(path: &Path, limit: u32) -> io::Result<Vec<u8>> {
    wait_while_asked();
    let meta = fs::metadata(path)?;
    if meta.is_dir() {
        return Err(io::Error::new(ErrorKind::IsADirectory, "is a folder, not a regular file"));
    }
    if !meta.is_file() {
        return Err(io::Error::new(ErrorKind::InvalidInput, "is not a regular file"));
    }
    let mut bytes = Vec::new();
    let read = File::open(path)?.take(u64::from(limit) + 1).read_to_end(&mut bytes)?;
    if read as u64 > u64::from(limit) {
        return Err(io::Error::new(ErrorKind::FileTooLarge, format!("is longer than {limit} bytes")));
    }
    Ok(bytes)
}

/// Lets a test make every read slow: waits while the file named by `SWITCHOVER_TEST_SLOW_READ` exists. Never waits in a release
/// build.
#[cfg(debug_assertions)]
fn wait_while_asked() {
    if let Some(file) = std::env::var_os("SWITCHOVER_TEST_SLOW_READ") {
        while Path::new(&file).exists() {
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
    }
}

#[cfg(not(debug_assertions))]
fn wait_while_asked() {}
