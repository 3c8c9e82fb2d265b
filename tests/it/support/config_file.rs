//! The configuration file of a test, and every way in which people change theirs.

use std::{
    fs,
    net::SocketAddr,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use tempfile::TempDir;

/// Probes are quick unless a test says otherwise.
const QUICK: &str = "    health_check: {interval: 100ms}\n";

/// A file in a folder of its own.
pub struct ConfigFile {
    folder: TempDir,
    pub path: PathBuf,
    listener: String,
    top: String,
    service: String,
    pools: Vec<(String, Vec<String>)>,
    active: String,
}

/// How a file is changed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Edit {
    InPlace,
    Rename,
    /// As kubelet does it: the file is a link into `..data`, which is a link to a folder that is replaced.
    Symlink,
}

impl ConfigFile {
    /// Service `shop` with these pools, the first one active, probed quickly.
    pub fn new(pools: &[(&str, &[SocketAddr])]) -> Self {
        let pools: Vec<(String, Vec<String>)> = pools
            .iter()
            .map(|(name, peers)| ((*name).to_owned(), peers.iter().map(|peer| format!("\"{peer}\"")).collect()))
            .collect();
        let folder = tempfile::tempdir().unwrap();
        let file = Self {
            path: folder.path().join("switchover.yaml"),
            folder,
            listener: String::new(),
            top: String::new(),
            service: QUICK.to_owned(),
            active: pools[0].0.clone(),
            pools,
        };
        file.write_in_place(&file.text());
        file
    }

    /// With further lines of the service, which replace those that were added before.
    pub fn service(mut self, lines: &str) -> Self {
        self.service = indented(lines);
        if !lines.contains("health_check:") {
            self.service += QUICK;
        }
        self.write_in_place(&self.text());
        self
    }

    /// With further lines of the listener, or further listeners.
    pub fn listener(mut self, lines: &str) -> Self {
        self.listener = indented(lines);
        self.write_in_place(&self.text());
        self
    }

    /// With further lines at the top level, the last one ended.
    pub fn top(mut self, lines: &str) -> Self {
        self.top = lines.to_owned();
        self.write_in_place(&self.text());
        self
    }

    /// Laid out as a mounted ConfigMap.
    pub fn into_config_map(self) -> Self {
        let text = self.text();
        fs::remove_file(&self.path).unwrap();
        symlink("..data/switchover.yaml", &self.path).unwrap();
        self.swap_symlink(&text);
        self
    }

    pub fn text(&self) -> String {
        let mut text = format!("listeners:\n  - address: 127.0.0.1:0\n{}admin:\n  address: 127.0.0.1:0\n", self.listener);
        text += &self.top;
        text += &format!("services:\n  shop:\n    active: {}\n{}    pools:\n", self.active, self.service);
        for (name, peers) in &self.pools {
            text += &format!("      {name}:\n        peers: [{}]\n", peers.join(", "));
        }
        text
    }

    /// Changes the `active:` line of the file as it is now.
    pub fn set_active(&self, pool: &str, how: Edit) {
        let before = fs::read_to_string(&self.path).unwrap();
        let line = before.lines().find(|line| line.trim_start().starts_with("active:")).unwrap();
        let text = before.replace(line, &format!("    active: {pool}"));
        self.write(&text, how);
    }

    /// Gives a pool other peers, in flow style as YAML.
    pub fn set_peers(&mut self, pool: &str, peers: &[&str]) {
        let (_, of_pool) = self.pools.iter_mut().find(|(name, _)| name == pool).unwrap();
        *of_pool = peers.iter().map(|peer| (*peer).to_owned()).collect();
        self.replace_by_rename(&self.text());
    }

    pub fn write(&self, text: &str, how: Edit) {
        match how {
            Edit::InPlace => self.write_in_place(text),
            Edit::Rename => self.replace_by_rename(text),
            Edit::Symlink => self.swap_symlink(text),
        }
    }

    pub fn write_in_place(&self, text: &str) {
        fs::write(&self.path, text).unwrap();
    }

    pub fn replace_by_rename(&self, text: &str) {
        let new = self.folder.path().join("new");
        fs::write(&new, text).unwrap();
        fs::rename(new, &self.path).unwrap();
    }

    /// In place, in two halves; `reopen` closes the file in between.
    pub fn write_in_two_halves(&self, text: &str, cut: usize, gap: Duration, reopen: bool) {
        use std::io::Write;
        let mut file = fs::File::create(&self.path).unwrap();
        file.write_all(&text.as_bytes()[..cut]).unwrap();
        if reopen {
            drop(file);
            thread::sleep(gap);
            file = fs::OpenOptions::new().append(true).open(&self.path).unwrap();
        } else {
            thread::sleep(gap);
        }
        file.write_all(&text.as_bytes()[cut..]).unwrap();
    }

    fn swap_symlink(&self, text: &str) {
        let of = |name: &str| self.folder.path().join(name);
        let number = fs::read_dir(self.folder.path()).unwrap().count();
        let dated = format!("..2026_{number}");
        fs::create_dir(of(&dated)).unwrap();
        fs::write(of(&dated).join("switchover.yaml"), text).unwrap();
        let old = fs::read_link(of("..data")).ok();
        symlink(&dated, of("..data_tmp")).unwrap();
        fs::rename(of("..data_tmp"), of("..data")).unwrap();
        if let Some(old) = old {
            fs::remove_dir_all(self.folder.path().join(old)).unwrap();
            // A new number each time, although the old folder has gone.
            fs::write(of(&format!("gone{number}")), "").unwrap();
        }
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }
}

/// Lines of a listener or a service as deep as these are in the file, where they are not so already. One that begins with `-`
/// begins another listener.
fn indented(lines: &str) -> String {
    if lines.starts_with(' ') {
        return lines.to_owned();
    }
    let indent = |line: &str| if line.starts_with("- ") { format!("  {line}\n") } else { format!("    {line}\n") };
    lines.lines().map(indent).collect()
}
