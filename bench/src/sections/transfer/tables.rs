//! What the transfers took and how many failed, as Markdown, each with its targets.

use super::{AtSize, Runs};
use crate::bench::FDS_MOST;
use crate::figures::{ratio, ratio_to_sum, target, times, times_up, Bound, Sample, Thousands};
use crate::transfers::Way;

/// Direct, as so many times faster than s6, at the most descriptors.
const DIRECT_FASTER: f64 = 4.0;
/// Relayed, likewise.
const RELAYED_FASTER: f64 = 2.0;
/// What direct may take over one hop.
const DIRECT_OVER_RAW: f64 = 1.6;
/// What relayed may take over two hops.
const RELAYED_OVER_RAW: f64 = 1.25;

pub fn introduction(runs: &Runs) -> String {
    let Runs { turns, turns_most, direct_most } = runs;
    format!(
        "## Transfer\n\n\
         `s6-fdholder-transferdump`, from its start to its end, from a daemon that holds so many \
         descriptors to an empty one; {turns} turns of everything, {turns_most} at {}.\n\n\
         - **direct**: ours between two of our daemons. The source itself sends into the \
         destination.\n\
         - **relayed**: ours between two of our daemons, through the client (`fdholder \
         transferdump --relay`), as it has to be when the source is s6's.\n\
         - **s6**: s6's between two of s6's daemons.\n\
         - **raw one hop**, **raw two hops**: what the kernel takes by itself, without protocol or \
         store: a process that sends as many descriptors to another, and one that receives them \
         and sends them on. Each is a whole process too, its own start included. The target is so \
         many times \"the raw limit plus the bare start of a process\"; below stands the ratio to \
         that sum, and, as the stricter reading, to the raw limit with no start but its own.\n\
         - **bare start**: a process that only starts and exits.\n\n\
         At {} direct is run {} times in all; those beyond the turns count among the failures \
         only.\n",
        Thousands(FDS_MOST),
        Thousands(FDS_MOST),
        Thousands(*direct_most),
    )
}

pub fn durations(sizes: &[AtSize]) -> String {
    let row = |AtSize { size, raw, ways }: &AtSize| {
        let cells = [
            &raw.start,
            &raw.one_hop,
            &raw.two_hops,
            &ways[Way::Direct].measured,
            &ways[Way::Relayed].measured,
            &ways[Way::S6].measured,
        ];
        row(*size, &cells.map(Sample::milliseconds))
    };
    let rows: String = sizes.iter().map(row).collect();
    format!(
        "| descriptors | bare start | raw one hop | raw two hops | direct | relayed | s6 |\n\
         | ---: | --- | --- | --- | --- | --- | --- |\n{rows}"
    )
}

pub fn ratios(sizes: &[AtSize]) -> String {
    let rows: String = sizes.iter().map(ratios_row).collect();
    let verdicts: String = sizes.iter().flat_map(verdicts).collect();
    format!(
        "| descriptors | s6 / direct | s6 / relayed | direct / raw one hop | \
         relayed / raw two hops |\n\
         | ---: | --- | --- | --- | --- |\n{rows}\n{verdicts}"
    )
}

fn ratios_row(AtSize { size, raw, ways }: &AtSize) -> String {
    let [direct, relayed, s6] = [Way::Direct, Way::Relayed, Way::S6].map(|way| &ways[way].measured);
    let cells = [
        times(ratio(s6, direct)),
        times(ratio(s6, relayed)),
        times_up(ratio(direct, &raw.one_hop)),
        times_up(ratio(relayed, &raw.two_hops)),
    ];
    row(*size, &cells)
}

fn verdicts(AtSize { size, raw, ways }: &AtSize) -> Vec<String> {
    let [direct, relayed, s6] = [Way::Direct, Way::Relayed, Way::S6].map(|way| &ways[way].measured);
    let told = |bound: Bound, text: String, ratio| {
        format!("- At {}, {}\n", Thousands(size), bound.verdict(&text, ratio))
    };
    match *size {
        1 => [("direct", direct), ("relayed", relayed)]
            .map(|(name, ours)| {
                told(Bound::AtLeast(1.0), format!("{name} no slower than s6"), ratio(s6, ours))
            })
            .to_vec(),
        FDS_MOST => {
            let than_s6 = |name, ours, bound| {
                let text = format!("{name} at least {bound} × faster than s6");
                told(Bound::AtLeast(bound), text, ratio(s6, ours))
            };
            let than_raw = |name, ours, hops, limit, bound| {
                let sum = format!("{name} within {bound} × of raw {hops} plus a bare start");
                let alone = format!("{name} within {bound} × of raw {hops} alone");
                [
                    told(Bound::AtMost(bound), sum, ratio_to_sum(ours, [limit, &raw.start])),
                    told(Bound::AtMost(bound), alone, ratio(ours, limit)),
                ]
            };
            let mut verdicts = vec![than_s6("direct", direct, DIRECT_FASTER)];
            verdicts.extend(than_raw("direct", direct, "one hop", &raw.one_hop, DIRECT_OVER_RAW));
            verdicts.push(than_s6("relayed", relayed, RELAYED_FASTER));
            let two_hops = &raw.two_hops;
            verdicts.extend(than_raw("relayed", relayed, "two hops", two_hops, RELAYED_OVER_RAW));
            verdicts
        }
        _ => Vec::new(),
    }
}

pub fn from_s6(sizes: &[AtSize]) -> String {
    let row = |AtSize { size, ways, .. }: &AtSize| {
        let (ours, s6) = (&ways[Way::FromS6].measured, &ways[Way::S6].measured);
        row(*size, &[ours.milliseconds(), s6.milliseconds(), times(ratio(s6, ours))])
    };
    let rows: String = sizes.iter().map(row).collect();
    format!(
        "Ours from s6's daemon into ours, as when one moves from s6 to ours, beside s6's between \
         two of s6's daemons (as above):\n\n\
         | descriptors | ours, from s6's | s6 | s6 / ours |\n\
         | ---: | --- | --- | --- |\n{rows}"
    )
}

pub fn failures(sizes: &[AtSize]) -> String {
    let told =
        |AtSize { size, ways, .. }: &AtSize| row(*size, &Way::ALL.map(|way| ways[way].failures()));
    let rows: String = sizes.iter().map(told).collect();
    let most = sizes.iter().filter(|at| at.size == FDS_MOST);
    let verdicts = most.flat_map(|AtSize { size, ways, .. }| {
        [("direct", Way::Direct), ("relayed", Way::Relayed)].map(|(name, way)| {
            let tally = &ways[way];
            let text = format!("At {}, {name} 0 of {}", Thousands(size), Thousands(tally.runs()));
            format!("- {}\n", target(&text, tally.flawless()))
        })
    });
    let verdicts: String = verdicts.collect();
    format!(
        "Transfers that failed (their times do not count above):\n\n\
         | descriptors | direct | relayed | ours, from s6's | s6 |\n\
         | ---: | --- | --- | --- | --- |\n{rows}\n{verdicts}"
    )
}

fn row(size: u32, cells: &[String]) -> String {
    format!("| {} | {} |\n", Thousands(size), cells.join(" | "))
}
