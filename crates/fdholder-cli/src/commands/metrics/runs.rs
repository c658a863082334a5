//! Metrics of services that `run` keeps running.

use super::{escaped, Metrics};
use crate::look::runs::Run;
use crate::supervisor::report::{Report, State};

impl Metrics {
    pub(super) fn runs(mut self, runs: &[Run]) -> Self {
        if !runs.is_empty() {
            self.head("run_up", "Whether the process that runs a service answers.", "gauge");
        }
        for run in runs {
            let service = format!(",service=\"{}\"", escaped(&run.name));
            self.sample("run_up", &service, u8::from(run.report.is_ok()));
        }
        let known: Vec<(String, &Report)> = runs
            .iter()
            .filter_map(|run| {
                let report = run.report.as_ref().ok()?;
                Some((format!(",service=\"{}\"", escaped(&run.name)), report))
            })
            .collect();
        if known.is_empty() {
            return self;
        }
        let in_state = |report: &Report, state| {
            report
                .generations
                .iter()
                .filter(|generation| generation.state == state)
                .count()
                .to_string()
        };
        let mut all = |name: &str, help: &str, kind: &str, value: &dyn Fn(&Report) -> String| {
            self.head(name, help, kind);
            for (service, report) in &known {
                self.sample(name, service, value(report));
            }
        };
        let newest = |report: &Report| report.generations.last().map_or(0, |last| last.number);
        all("run_generation", "The newest generation.", "gauge", &|it| newest(it).to_string());
        let help = "Whether a generation is ready.";
        all("run_ready", help, "gauge", &|it| in_state(it, State::Ready));
        let help = "Generations that were told to stop and have not ended.";
        all("run_draining", help, "gauge", &|it| in_state(it, State::Draining));
        let help = "How long all starts together took until the program was ready.";
        let seconds = |it: &Report| {
            format!("{}.{:03}", it.time_to_ready_ms / 1000, it.time_to_ready_ms % 1000)
        };
        all("run_time_to_ready_seconds_total", help, "counter", &seconds);
        self.head("run_starts_total", "Starts and restarts by result.", "counter");
        for (service, report) in &known {
            for (result, count) in &report.starts {
                let labels = format!("{service},result=\"{}\"", escaped(result));
                self.sample("run_starts_total", &labels, count);
            }
        }
        self
    }
}
