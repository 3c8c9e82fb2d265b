//! Files: the bad ones with the words that are said of them, and the good ones of the repository.

use std::{
    fs,
    path::{Path, PathBuf},
};

use switchover::config;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn yaml_files(folder: &Path) -> Vec<PathBuf> {
    let files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<PathBuf> = files.filter(|path| path.extension().is_some_and(|extension| extension == "yaml")).collect();
    files.sort();
    files
}

/// Each `tests/invalid/NAME.yaml` is refused in exactly the words of `NAME.expected`. UPDATE_EXPECTED=1 writes them anew.
#[test]
fn every_bad_file_is_refused_in_the_words_recorded_for_it() {
    let folder = root().join("tests/invalid");
    let files = yaml_files(&folder);
    assert!(files.len() >= 25, "only {} files", files.len());
    for path in files {
        let mut error = config::load(&path).err().unwrap_or_else(|| panic!("{} is valid", path.display()));
        error.file = path.file_name().unwrap().into();
        let said = format!("{error}\n");
        let expected = path.with_extension("expected");
        if std::env::var_os("UPDATE_EXPECTED").is_some() {
            fs::write(&expected, &said).unwrap();
        }
        let expected = fs::read_to_string(&expected).unwrap_or_else(|e| panic!("{}: {e}", expected.display()));
        assert_eq!(said, expected, "{}", path.display());
        let output = crate::support::switchover::run(&["check", "--config", path.to_str().unwrap()]);
        assert_eq!((output.code, output.stderr.lines().count()), (78, said.lines().count()), "{output:?}");
    }
}

#[test]
fn every_example_is_valid() {
    let files = yaml_files(&root().join("conf"));
    assert!(files.len() >= 2);
    for path in files {
        let output = crate::support::switchover::run(&["check", "--config", path.to_str().unwrap()]);
        assert_eq!(output.code, 0, "{output:?}");
    }
}

/// Each of them is a whole file, so that it can be pasted as it is.
#[test]
fn every_block_of_yaml_in_the_documentation_is_valid() {
    let mut blocks = 0;
    for page in ["README.md", "docs/configuration.md"] {
        let text = fs::read_to_string(root().join(page)).unwrap_or_else(|e| panic!("{page}: {e}"));
        for block in text.split("```yaml\n").skip(1) {
            let block = block.split("```").next().unwrap();
            blocks += 1;
            config::parse(block).unwrap_or_else(|problems| panic!("{page}: {problems:?}\n{block}"));
        }
    }
    assert!(blocks >= 5, "only {blocks} blocks");
}

/// `cargo install --git URL` needs the name of a package where several of a repository have binaries.
#[test]
fn no_other_package_of_the_repository_has_binaries() {
    let listed = std::process::Command::new("git").args(["ls-files", "*Cargo.toml"]).current_dir(root()).output();
    let listed = listed.map(|output| String::from_utf8(output.stdout).unwrap()).unwrap_or_default();
    if listed.is_empty() {
        eprintln!("NOT TESTED: this is not a git repository");
        return;
    }
    let others: Vec<&str> = listed.lines().filter(|path| *path != "Cargo.toml").collect();
    assert!(others.contains(&"fuzz/Cargo.toml"), "{listed}");
    for path in others {
        let manifest = root().join(path);
        assert!(!fs::read_to_string(&manifest).unwrap().contains("[[bin]]"), "{path}");
        assert!(!manifest.with_file_name("src").join("main.rs").exists(), "{path}");
    }
}
