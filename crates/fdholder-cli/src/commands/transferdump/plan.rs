//! What a transfer would do.

use crate::failure::{exit, Failure};
use crate::show::duration::brief;
use crate::show::output::print;
use crate::show::table::Table;
use crate::show::terminal::Screen;
use fdholder::{strerror, Errno, Limit, Plan, Timestamp};
use serde_json::json;
use std::process::ExitCode;

/// Prints it; the exit code says whether the destination would take it.
pub fn show(plan: &Plan, as_json: bool) -> Result<ExitCode, Failure> {
    print(&if as_json { json(plan) } else { text(plan) })?;
    Ok(match plan.refusal {
        None => ExitCode::SUCCESS,
        Some(_) => ExitCode::from(exit::DENIED_BY_DESTINATION),
    })
}

fn json(plan: &Plan) -> String {
    let entries: Vec<_> = plan
        .entries
        .iter()
        .map(|entry| {
            let moment = entry.limit.and_then(Limit::moment);
            json!({
                "id": std::str::from_utf8(entry.id.as_bytes()).ok(),
                "quoted": entry.id.to_string(),
                "expires": moment.map(|moment| moment.to_string()),
                "conflicts": entry.conflicts,
            })
        })
        .collect();
    let value = json!({
        "entries": entries,
        "path": plan.route.to_string(),
        "fits": plan.refusal.is_none(),
        "refusal": plan.refusal.map(strerror),
        "destination_holds": plan.held,
        "destination_capacity": plan.capacity,
    });
    format!("{value}\n")
}

fn text(plan: &Plan) -> String {
    let now = Timestamp::now();
    let mut table = Table::new(["ID", "EXPIRES", "AT DESTINATION"]);
    for entry in &plan.entries {
        let expires = match entry.limit.map(Limit::moment) {
            None => "?".to_owned(),
            Some(None) => "never".to_owned(),
            Some(Some(moment)) => format!("in {}", brief(moment.saturating_since(now))),
        };
        let held = match entry.conflicts {
            Some(true) => "held",
            Some(false) => "-",
            None => "?",
        };
        table.row([entry.id.to_string().into(), expires.into(), held.into()]);
    }
    table.to_text(Screen::stdout()) + &conclusion(plan)
}

fn conclusion(plan: &Plan) -> String {
    let count = plan.entries.len();
    let conflicts = plan.entries.iter().filter(|entry| entry.conflicts == Some(true)).count();
    let of = plan.capacity.map_or_else(String::new, |capacity| format!(" of {capacity}"));
    let there = match plan.held {
        Some(held) => {
            format!("{conflicts} of them under ids that the destination holds; it holds {held}{of}")
        }
        None => "what the destination holds this user may not see".to_owned(),
    };
    let verdict = match plan.refusal {
        None if plan.held.is_none() => "it lets this user give it".to_owned(),
        None => "it fits".to_owned(),
        Some(Errno::NFILE) => "it does not fit".to_owned(),
        Some(errno) => format!("the destination would refuse it: {}", strerror(errno)),
    };
    format!("{count} to carry ({route}), {there}: {verdict}\n", route = plan.route)
}
