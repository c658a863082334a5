use super::*;
use std::os::unix::fs::symlink;

fn folders(confinement: &Confinement) -> Vec<&Path> {
    confinement.rules.keys().map(PathBuf::as_path).collect()
}

#[test]
fn the_folder_is_what_stays() {
    let root = tempfile::tempdir().unwrap();
    let root = root.path().canonicalize().unwrap();
    let (rules, shared, releases) =
        (root.join("etc/rules"), root.join("shared"), root.join("releases/1"));
    for folder in [rules.join("uid/5"), shared.join("admin"), releases.clone()] {
        fs::create_dir_all(folder).unwrap();
    }
    let none = || Confinement::default();
    let mut files = none();
    files.read_file(&root.join("etc/config")).unwrap();
    assert_eq!(folders(&files), [root.join("etc")]);
    // One that is reached by a link is switched with that.
    symlink(releases.join("config"), root.join("etc/link")).unwrap();
    fs::write(releases.join("config"), "").unwrap();
    files.read_file(&root.join("etc/link")).unwrap();
    assert_eq!(folders(&files), [root.join("etc"), releases]);

    let mut read = none();
    read.read_folder(&rules).unwrap();
    assert_eq!(folders(&read), [root.join("etc")]);
    // By now it leads elsewhere, and from there still elsewhere; round in circles, too.
    symlink(shared.join("admin"), rules.join("uid/7")).unwrap();
    symlink(&rules, shared.join("admin/back")).unwrap();
    fs::write(root.join("value"), "").unwrap();
    symlink("../../value", shared.join("admin/env")).unwrap();
    symlink("nowhere", rules.join("uid/8")).unwrap();
    let mut read = none();
    read.read_folder(&rules).unwrap();
    let expected = [root.clone(), root.join("etc"), rules, shared.join("admin")];
    assert_eq!(folders(&read), expected);

    let mut absent = none();
    absent.read_folder(&root.join("etc/no/such/folder")).unwrap();
    assert_eq!(folders(&absent), [root.join("etc")]);
}

/// A program or configuration there does not make it all the world.
#[test]
fn the_root_is_not_a_folder_like_others() {
    let mut files = Confinement::default();
    files.read_file(Path::new("/config")).unwrap();
    files.make_fifo(Path::new("/fifo")).unwrap();
    assert_eq!(folders(&files), [Path::new("/config"), Path::new("/fifo")]);
}

/// Which is full of other programs.
#[test]
fn a_program_is_where_a_link_leads() {
    let root = tempfile::tempdir().unwrap();
    let root = root.path().canonicalize().unwrap();
    let (bin, own) = (root.join("bin"), root.join("own"));
    for folder in [&bin, &own] {
        fs::create_dir(folder).unwrap();
    }
    fs::write(own.join("program"), "").unwrap();
    symlink(own.join("program"), bin.join("program")).unwrap();
    let launch = Launch { program: bin.join("program"), arguments: Vec::new() };
    let all = Confinement::with_program(&launch).unwrap();
    assert!(folders(&all).contains(&own.as_path()));
    assert!(!folders(&all).contains(&bin.as_path()));
}

#[test]
fn code_says_where_it_comes_from() {
    let folder = |line: &str| folder_of_code(line.as_bytes());
    let line = "1000-3000 r-xp 0009e000 fe:00 1318    /usr/lib/x y/libc.so.6";
    assert_eq!(folder(line), Some("/usr/lib/x y".into()));
    for none in [
        "1000-3000 r--p 0009e000 fe:00 1318   /usr/lib/locale/x",
        "1000-3000 r-xp 00000000 00:00 0      [vdso]",
        "1000-3000 r-xp 00000000 00:00 0",
        "",
    ] {
        assert_eq!(folder(none), None, "{none}");
    }
    // There is at least this program.
    let own = std::env::current_exe().unwrap();
    assert!(folders_of_libraries().unwrap().contains(own.parent().unwrap()));
}
