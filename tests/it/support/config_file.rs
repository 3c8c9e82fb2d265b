//! The configuration file of a test, and the usual ways to change such a file.

use std::{
    fs,
    net::SocketAddr,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use tempfile::TempDir;

/// Default settings of a service: short intervals of probes.
const QUICK: &str = "    health_check: {interval: 100ms}\n";

/// A file in a temporary folder.
pub struct ConfigFile {
    folder: TempDir,
    pub path: PathBuf,
    listener: String,
    top: String,
    service: String,
    pools: Vec<(String, Vec<String>)>,
    active: String,
}

/// A way to change a file.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Edit {
    InPlace,
    Rename,
    /// Like the kubelet: the file is a link into `..data`, which is a link to a folder that is replaced.
    Symlink,
}

impl ConfigFile {
    /// Creates a file with a service `shop` and these pools, the first one active.
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

    /// Sets additional lines of the service; replaces earlier ones.
    pub fn service(mut self, lines: &str) -> Self {
        self.service = indented(lines);
        if !lines.contains("health_check:") {
            self.service += QUICK;
        }
        self.write_in_place(&self.text());
        self
    }

    /// Sets additional lines of the listener, or additional listeners.
    pub fn listener(mut self, lines: &str) -> Self {
        self.listener = indented(lines);
        self.write_in_place(&self.text());
        self
    }

    /// Sets additional lines at the top level.
    pub fn top(mut self, lines: &str) -> Self {
        self.top = lines.to_owned();
        self.write_in_place(&self.text());
        self
    }

    /// Changes the layout to that of a mounted ConfigMap.
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
        let service = unobserved(&self.service);
        text += &format!("services:\n  shop:\n    active: {}\n{service}    pools:\n", self.active);
        for (name, peers) in &self.pools {
            text += &format!("      {name}:\n        peers: [{}]\n", peers.join(", "));
        }
        text
    }

    /// Changes the `active:` line of the current file.
    pub fn set_active(&self, pool: &str, how: Edit) {
        let before = fs::read_to_string(&self.path).unwrap();
        let line = before.lines().find(|line| line.trim_start().starts_with("active:")).unwrap();
        let text = before.replace(line, &format!("    active: {pool}"));
        self.write(&text, how);
    }

    /// Sets the peers of a pool, as YAML in flow style.
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

    /// Writes the file in place, in two halves; with `reopen`, closes it in between.
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
            // A new number each time, although the old folder is removed.
            fs::write(of(&format!("gone{number}")), "").unwrap();
        }
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }
}

/// Turns off the observation after a promotion, unless the lines of the service have it: most tests end a swap at its drain.
fn unobserved(lines: &str) -> String {
    if lines.contains("observe:") {
        lines.to_owned()
    } else if lines.contains("promotion: {") {
        lines.replace("promotion: {", "promotion: {observe: 0s, ")
    } else {
        format!("{lines}    promotion: {{observe: 0s}}\n")
    }
}

/// Indents lines of a listener or a service, unless they are indented already. A line that begins with `-` starts another
/// listener.
fn indented(lines: &str) -> String {
    if lines.starts_with(' ') {
        return lines.to_owned();
    }
    let indent = |line: &str| if line.starts_with("- ") { format!("  {line}\n") } else { format!("    {line}\n") };
    lines.lines().map(indent).collect()
}
