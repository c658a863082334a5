//! Tests that need what not every machine has.

use libtest_mimic::{Failed, Trial};
use std::panic::{catch_unwind, AssertUnwindSafe};

/// A test that is reported as ignored, by name, when something is `missing`; unless
/// `FDHOLDER_REQUIRE_PEERS` is set: then it fails.
pub fn trial(name: String, missing: Option<String>, run: impl FnOnce() + Send + 'static) -> Trial {
    if let Some(missing) = missing {
        let required = std::env::var_os("FDHOLDER_REQUIRE_PEERS").is_some();
        let failure = format!("this needs {missing}");
        return Trial::test(name, move || Err(Failed::from(failure)))
            .with_kind(format!("needs {missing}"))
            .with_ignored_flag(!required);
    }
    Trial::test(name, move || {
        catch_unwind(AssertUnwindSafe(run)).map_err(|panic| {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(|&text| text.to_owned()));
            Failed::from(text.unwrap_or_else(|| "it panicked".to_owned()))
        })
    })
}
