//! The results: medians over the runs, as tables or as JSON.

use std::fs;

use serde_json::{Map, Value, json};

use crate::server::Kind;
use crate::trial::Scenario;

/// Figures that should be 0. The worst run is shown, because a median would hide a fault.
const FAULTS: [&str; 7] =
    ["errors", "missed", "repeated", "lost", "retries", "set-up retries", "never"];

/// The results of a run, with their units.
pub type Figures = Vec<(&'static str, f64)>;

pub struct Row {
    pub scenario: Scenario,
    pub clients: usize,
    pub kind: Kind,
    pub runs: Vec<Result<Figures, String>>,
}

impl Row {
    fn title(&self) -> String {
        format!("{}, {}", self.kind.name(), grouped(self.clients))
    }

    /// Returns, over the successful runs, the median of each figure, and the worst of each fault.
    fn summary(&self) -> Figures {
        let done: Vec<&Figures> = self.runs.iter().flatten().collect();
        let Some(first) = done.first() else {
            return Vec::new();
        };
        let of_all = |(nth, &(name, _)): (usize, &(&'static str, f64))| {
            let values: Vec<f64> = done.iter().map(|figures| figures[nth].1).collect();
            (name, percentile(&values, if FAULTS.contains(&name) { 100 } else { 50 }))
        };
        first.iter().enumerate().map(of_all).collect()
    }

    pub fn figure(&self, name: &str) -> Option<f64> {
        let summary = self.summary();
        let (_, value) = summary.iter().find(|figure| figure.0 == name)?;
        Some(*value)
    }

    fn failures(&self) -> impl Iterator<Item = &String> {
        self.runs.iter().filter_map(|run| run.as_ref().err())
    }

    fn json(&self) -> Value {
        let object = |figures: &Figures| -> Value {
            let entries = figures.iter().map(|&(name, value)| (name.to_owned(), json!(value)));
            Value::Object(entries.collect::<Map<_, _>>())
        };
        let run = |run: &Result<Figures, String>| match run {
            Ok(figures) => object(figures),
            Err(error) => json!({ "error": error }),
        };
        json!({
            "scenario": self.scenario.name(),
            "clients": self.clients,
            "server": self.kind.name(),
            "summary": object(&self.summary()),
            "runs": self.runs.iter().map(run).collect::<Vec<_>>(),
        })
    }
}

pub fn json(rows: &[Row], runs: usize) -> Value {
    let results: Vec<Value> = rows.iter().map(Row::json).collect();
    json!({ "machine": machine(), "runs": runs, "results": results })
}

/// Returns a Markdown table for each scenario.
pub fn tables(rows: &[Row], runs: usize) -> String {
    let mut text = format!("{}, medians of {runs} (faults: the worst run)\n", machine());
    for rows in rows.chunk_by(|a, b| a.scenario == b.scenario) {
        text += "\n";
        let summaries: Vec<Figures> = rows.iter().map(Row::summary).collect();
        let figures = summaries.iter().find(|figures| !figures.is_empty());
        let names = figures.into_iter().flatten().map(|(name, _)| (*name).to_owned());
        let mut lines = vec![vec![rows[0].scenario.name().to_owned()]];
        lines[0].extend(names);
        for (row, figures) in rows.iter().zip(&summaries) {
            let values = figures.iter().map(|&(_, value)| readable(value));
            lines.push([row.title()].into_iter().chain(values).collect());
        }
        text += &aligned(&lines);
        for row in rows {
            for failure in row.failures() {
                text += &format!("{} failed: {failure}\n", row.title());
            }
        }
    }
    text
}

fn aligned(lines: &[Vec<String>]) -> String {
    let columns = lines.first().map_or(0, Vec::len);
    let cell = |line: &Vec<String>, column: usize| line.get(column).cloned().unwrap_or_default();
    let width = |column| lines.iter().map(|line| cell(line, column).chars().count()).max();
    let widths: Vec<usize> = (0..columns).filter_map(width).collect();
    let mut text = String::new();
    for (nth, line) in lines.iter().enumerate() {
        for (column, &width) in widths.iter().enumerate() {
            let cell = cell(line, column);
            text += &match column {
                0 => format!("| {cell:<width$} |"),
                _ => format!(" {cell:>width$} |"),
            };
        }
        text += "\n";
        if nth == 0 {
            for (column, &width) in widths.iter().enumerate() {
                let dashes = "-".repeat(width);
                text += &match column {
                    0 => format!("|:{dashes}-|"),
                    _ => format!("-{dashes}:|"),
                };
            }
            text += "\n";
        }
    }
    text
}

pub fn readable(value: f64) -> String {
    match value {
        negative if negative < 0.0 => format!("-{}", readable(-negative)),
        whole if whole.fract() == 0.0 => grouped(whole as usize),
        small if small < 10.0 => format!("{value:.2}"),
        middling if middling < 100.0 => format!("{value:.1}"),
        _ => grouped(value.round() as usize),
    }
}

pub fn grouped(number: usize) -> String {
    if number < 1000 {
        return number.to_string();
    }
    format!("{},{:03}", grouped(number / 1000), number % 1000)
}

pub fn machine() -> String {
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let read = |path| fs::read_to_string(path).unwrap_or_default();
    let cpus = read("/proc/cpuinfo");
    let model = cpus.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let kernel = read("/proc/sys/kernel/osrelease");
    let model = model.map_or("CPU", |(_, name)| name);
    format!("{cores} × {model}, Linux {}", kernel.trim())
}

/// Returns the percentile by nearest rank; 0 if there are no values.
pub fn percentile(values: &[f64], percent: usize) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied().unwrap_or(0.0)
}
