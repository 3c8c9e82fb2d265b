//! Configuration files: invalid ones with their messages, and the valid ones of the repository.

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

/// Each `tests/invalid/NAME.yaml` is rejected with exactly the text of `NAME.expected`. UPDATE_EXPECTED=1 writes these files.
#[test]
fn every_invalid_file_is_refused_with_its_recorded_message() {
    let folder = root().join("tests/invalid");
    let files = yaml_files(&folder);
    assert!(files.len() >= 25, "only {} files", files.len());
    for path in files {
        let mut error = config::load(&path).err().unwrap_or_else(|| panic!("{} is valid", path.display()));
        error.problems.iter_mut().for_each(|problem| problem.file = path.file_name().unwrap().to_str().unwrap().to_owned());
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

/// A block may be a fragment; the missing keys are added.
fn completed(block: &str) -> String {
    const POOLS: &str = "active: blue\npools: {blue: {peers: [app-blue:8081]}, green: {peers: [app-green:8081]}}\n";
    const LISTENERS: &str = "listeners: [{address: 0.0.0.0:8080}]\n";
    let has = |key: &str| block.lines().any(|line| line.strip_prefix(key).is_some_and(|rest| rest.starts_with(':')));
    let service =
        |text: &str| format!("services:\n  shop:\n{}", text.lines().map(|line| format!("    {line}\n")).collect::<String>());
    match (has("listeners"), has("services")) {
        (true, true) => block.to_owned(),
        (true, false) => format!("{block}{}", service(POOLS)),
        (false, true) => format!("{LISTENERS}{block}"),
        (false, false) => format!("{LISTENERS}{}", service(&format!("{POOLS}{block}"))),
    }
}

#[test]
fn every_block_of_yaml_in_the_documentation_is_valid() {
    let docs = fs::read_dir(root().join("docs")).unwrap().map(|entry| entry.unwrap().path());
    let pages = docs.filter(|path| path.extension().is_some_and(|extension| extension == "md"));
    let mut blocks = 0;
    for page in pages.chain([root().join("README.md")]) {
        let text = fs::read_to_string(&page).unwrap_or_else(|e| panic!("{}: {e}", page.display()));
        for block in text.split("```yaml\n").skip(1) {
            let block = completed(block.split("```").next().unwrap());
            blocks += 1;
            config::parse(&block).unwrap_or_else(|problems| panic!("{}: {problems:?}\n{block}", page.display()));
        }
    }
    assert!(blocks >= 12, "only {blocks} blocks");
}

/// Every relative link of a page leads to a file, and its fragment to a heading there.
#[test]
fn every_link_of_the_documentation_leads_somewhere() {
    let anchor = |heading: &str| {
        let kept = heading.trim_start_matches('#').trim().to_lowercase();
        kept.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_')).collect::<String>().replace(' ', "-")
    };
    let mut pages = vec![root().join("README.md"), root().join("CONTRIBUTING.md"), root().join("SECURITY.md")];
    for folder in ["docs", "docs/decisions", "deploy/compose", "deploy/kubernetes", "deploy/prometheus", "deploy/systemd"] {
        let files = fs::read_dir(root().join(folder)).unwrap().map(|entry| entry.unwrap().path());
        pages.extend(files.filter(|path| path.extension().is_some_and(|extension| extension == "md")));
    }
    for page in pages {
        let text = fs::read_to_string(&page).unwrap();
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if link.contains("://") {
                continue;
            }
            let (file, fragment) = link.split_once('#').unwrap_or((link, ""));
            let target = if file.is_empty() { page.clone() } else { page.parent().unwrap().join(file) };
            assert!(target.exists(), "{}: {link}", page.display());
            if !fragment.is_empty() {
                let target = fs::read_to_string(&target).unwrap();
                let found = target.lines().filter(|line| line.starts_with('#')).any(|line| anchor(line) == fragment);
                assert!(found, "{}: no heading for {link}", page.display());
            }
        }
    }
}

/// `make picture` draws it from a run of the demo.
#[test]
fn the_picture_in_the_readme_is_small_and_says_what_it_shows() {
    assert!(fs::read_to_string(root().join("README.md")).unwrap().contains("](docs/swap.svg)"));
    let svg = fs::read_to_string(root().join("docs/swap.svg")).unwrap();
    assert!(svg.len() < 40 * 1024, "{} bytes", svg.len());
    let element = |name: &str| {
        let rest = svg.split_once(&format!("<{name} id=")).unwrap_or_else(|| panic!("no {name}")).1;
        rest.split_once('>').unwrap().1.split_once('<').unwrap().0.to_owned()
    };
    // Screen readers read these two.
    let (title, desc) = (element("title"), element("desc"));
    assert!(title.contains("requests, 0 failed"), "{title}");
    let numbers = |text: &str| -> Vec<u64> { text.split(' ').filter_map(|word| word.parse().ok()).collect() };
    let (all, shares) = (numbers(&title)[0], numbers(&desc));
    assert_eq!(all, shares[0] + shares[1], "{title} {desc}");
    assert!(shares[0] > 0 && shares[1] > 0, "{desc}");
    assert!(svg.contains("prefers-color-scheme:dark"));
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
