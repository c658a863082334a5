//! Access rules that need another tool of s6.

use crate::support::{assert_exit, eventually, Daemon, Rules, Suite};
use crate::Pair;
use rustix::process::Signal;

/// Whose tool makes a cdb of rules.
pub const CDB_MAKER: Suite = Suite::S6V213;

/// Rules in a cdb, as s6's own tool makes it; SIGHUP has it read again.
pub fn in_a_cdb(pair: &Pair) {
    let rules = Rules::all(pair.folder().join("rules"));
    let cdb = pair.folder().join("rules.cdb");
    let make = || {
        let mut command = CDB_MAKER.command("s6-accessrules-cdb-from-fs");
        assert!(command.arg(&cdb).arg(&rules.dir).status().unwrap().success());
    };
    make();
    let options = ["-x", cdb.to_str().unwrap()];
    let daemon = Daemon::start(pair.daemon, &pair.socket("holder"), &options);
    let path = daemon.path.to_str().unwrap();
    assert_exit(&pair.run("store", &[path, "a"]), 0);
    assert_exit(&pair.run("list", &[path]), 0);

    std::fs::remove_file(rules.dir.join("uid/self/env/S6_FDHOLDER_LIST")).unwrap();
    make();
    assert_exit(&pair.run("list", &[path]), 0);
    daemon.signal(Signal::HUP);
    eventually("the new rules hold", || pair.run("list", &[path]).status.code() == Some(1));
    assert_exit(&pair.run("retrieve", &[path, "a", "true"]), 0);

    // A file that is no cdb any more leaves the rules in force.
    let broken = pair.folder().join("broken");
    std::fs::write(&broken, "").unwrap();
    std::fs::rename(&broken, &cdb).unwrap();
    daemon.signal(Signal::HUP);
    assert_exit(&pair.run("retrieve", &[path, "a", "true"]), 0);

    // Cutting it short in place harms ours no more; s6's has it mapped.
    if pair.daemon == Suite::Ours {
        make();
        daemon.signal(Signal::HUP);
        std::fs::File::options().write(true).open(&cdb).unwrap().set_len(100).unwrap();
        assert_exit(&pair.run("retrieve", &[path, "a", "true"]), 0);
    }
}
