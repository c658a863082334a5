//! The notify socket of a service whose user changes.

use crate::support::{assert_exit, deadline, id, stderr, Daemon, Rules, Suite};
use crate::{common_folder, run_as};
use std::fs::{self, Permissions};
use std::os::unix::fs::{chown, MetadataExt, PermissionsExt};

/// Says that it is ready, and stores.
const SEND: &str = "import array, os, socket, sys\n\
    s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)\n\
    r, w = os.pipe()\n\
    a = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array('i', [r]))]\n\
    at = os.environ['NOTIFY_SOCKET']\n\
    s.sendmsg([b'FDSTORE=1\\nFDPOLL=0\\nFDNAME=n%d' % os.getuid()], a, 0, at)\n\
    b, w = os.pipe()\n\
    a = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array('i', [w]))]\n\
    s.sendmsg([b'BARRIER=1'], a, 0, at); os.close(w); os.read(b, 1)\n";

/// With `DynamicUser=` each start is another user's, in a group that has a folder.
pub fn next_user_of_a_service_can_send() {
    let (folder, binary) = common_folder();
    let run = folder.path().join("run");
    fs::create_dir(&run).unwrap();
    chown(&run, Some(0), Some(4000)).unwrap();
    fs::set_permissions(&run, Permissions::from_mode(0o2770)).unwrap();
    let rules = Rules::all(folder.path().join("rules"))
        .allow("gid/4000")
        .regexes("gid/4000", ".", ".")
        .may("gid/4000", &["LIST"]);
    let path = run.join("holder");
    let daemon = Daemon::with_rules(Suite::Ours, &path, &rules, &[]);
    chown(&path, Some(0), Some(4000)).unwrap();
    fs::set_permissions(&path, Permissions::from_mode(0o660)).unwrap();
    let holder = path.to_str().unwrap();
    let exec = |uid: u32, options: &[&str]| {
        let arguments = [
            &["exec", "--notify", "svc"],
            options,
            &[holder, "--", "/usr/bin/python3", "-c", SEND],
        ];
        run_as(uid, 4000, &binary, &arguments.concat())
    };
    for (uid, options) in [
        (61001, &[][..]),
        (61002, &[]),
        (61003, &["--notify-mode", "0660"]),
        // Who may send already changes nothing.
        (61004, &[]),
    ] {
        assert_exit(&exec(uid, options), 0);
    }
    let socket = fs::metadata(run.join("holder.svc.notify")).unwrap();
    assert_eq!((socket.uid(), socket.mode() & 0o777), (61003, 0o660));
    let mut ids = daemon.client().list(deadline()).unwrap();
    ids.retain(|it| it.as_bytes().starts_with(b"svc/n"));
    ids.sort();
    assert_eq!(ids, [61001, 61002, 61003, 61004].map(|uid| id(&format!("svc/n{uid}"))));
    // Where it cannot be made anew that is said, and it is left as it is.
    fs::set_permissions(&run, Permissions::from_mode(0o2750)).unwrap();
    let output = exec(61005, &["--notify-mode", "0600"]);
    assert_exit(&output, 111);
    assert!(stderr(&output).contains("unable to make"), "{output:?}");
    assert_exit(&exec(61004, &[]), 0);
}

/// Of a socket that is there, too; and the rules are asked beforehand whether it may store.
pub fn owner_of_the_socket_is_as_asked_for_and_warned_of_when_refused() {
    let (folder, binary) = common_folder();
    let rules = Rules::all(folder.path().join("rules"))
        .allow("uid/1001")
        .regexes("uid/1001", "^svc/", "^svc/")
        .allow("uid/1002")
        .regexes("uid/1002", "^svc/stored", "")
        .allow("gid/1003")
        .regexes("gid/1003", "^svc/", "")
        .deny("uid/1004");
    let path = folder.path().join("holder");
    let _daemon = Daemon::with_rules(Suite::Ours, &path, &rules, &[]);
    let holder = path.to_str().unwrap();
    let owner = |text: &str| {
        let arguments =
            ["exec", "--notify", "svc", "--notify-owner", text, holder, "--", "/bin/true"];
        let output = run_as(0, 0, &binary, &arguments);
        assert_exit(&output, 0);
        let socket = fs::metadata(folder.path().join("holder.svc.notify")).unwrap();
        (stderr(&output), socket.uid(), socket.gid())
    };
    for (text, ids, refused) in [
        ("1001", (1001, 1001), None),
        ("1002", (1002, 1002), Some("svc/.status")),
        ("1005:1003", (1005, 1003), None),
        ("1004:1003", (1004, 1003), Some("svc/stored")),
        ("1006", (1006, 1006), Some("svc/stored")),
        ("0", (0, 0), None),
    ] {
        let (said, uid, gid) = owner(text);
        assert_eq!((uid, gid), ids, "{text}");
        match refused {
            None => assert_eq!(said, "", "{text}"),
            Some(id) => {
                let expected = format!(
                    "do not let the owner of the socket, uid {uid} gid {gid}, \
                    store under {id}:"
                );
                assert!(said.contains("warning") && said.contains(&expected), "{text}: {said}");
            }
        }
    }
}
