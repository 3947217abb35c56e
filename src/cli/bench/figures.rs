//! From measurements to the figures that are printed.

use std::collections::BTreeMap;

use serde_json::{Value, json};

/// What one round of one pipeline gave.
#[derive(Clone, Debug, Default)]
pub struct Round {
    pub messages_per_s: f64,
    pub p50_ms: f64,
    pub p99_ms: f64,
    /// Microseconds a message, by process; empty where the system does not tell.
    pub cpu_us: BTreeMap<&'static str, f64>,
    pub peak_rss_bytes: Option<u64>,
}

/// All rounds of a scenario that has a bare program beside it.
#[derive(Clone, Debug, Default)]
pub struct Figures {
    pub scenario: String,
    pub ours: Vec<Round>,
    pub bare: Vec<Round>,
}

impl Figures {
    /// Ours against bare: the quotient of the medians.
    pub fn ratio(&self) -> Option<f64> {
        let bare = self.bare_rate()?;
        (bare > 0.0).then(|| median(self.ours.iter().map(|r| r.messages_per_s)) / bare)
    }

    fn bare_rate(&self) -> Option<f64> {
        (!self.bare.is_empty()).then(|| median(self.bare.iter().map(|r| r.messages_per_s)))
    }

    /// The document of `--json`.
    pub fn json(&self) -> Value {
        let of = |f: fn(&Round) -> f64| median(self.ours.iter().map(f));
        let bare =
            |f: fn(&Round) -> f64| (!self.bare.is_empty()).then(|| median(self.bare.iter().map(f)));
        let times =
            |ours: f64, bare: Option<f64>| bare.filter(|b| *b > 0.0).map(|b| rounded(ours / b, 3));
        let bridge = |rounds: &[Round]| {
            let each = rounds
                .iter()
                .filter_map(|r| r.cpu_us.get("bridge").copied());
            median(each)
        };
        let peak = self.ours.iter().filter_map(|r| r.peak_rss_bytes).max();
        json!({
            "scenario": self.scenario,
            "messages_per_s": rounded(of(|r| r.messages_per_s), 1),
            "p50_ms": rounded(of(|r| r.p50_ms), 3),
            "p99_ms": rounded(of(|r| r.p99_ms), 3),
            "cpu_us_per_message": cpu(&self.ours),
            "peak_rss_bytes": peak,
            "bare_messages_per_s": self.bare_rate().map(|rate| rounded(rate, 1)),
            "bare_p99_ms": bare(|r| r.p99_ms).map(|ms| rounded(ms, 3)),
            "bare_cpu_us_per_message": (!self.bare.is_empty()).then(|| cpu(&self.bare)),
            "ratio": self.ratio().map(|ratio| rounded(ratio, 3)),
            "p99_ratio": times(of(|r| r.p99_ms), bare(|r| r.p99_ms)),
            "cpu_ratio": times(
                bridge(&self.ours),
                (!self.bare.is_empty()).then(|| bridge(&self.bare)),
            ),
        })
    }

    /// The same for a person, with every round.
    pub fn text(&self) -> String {
        let mut lines = vec![self.scenario.clone()];
        for (name, rounds) in [("ours", &self.ours), ("bare", &self.bare)] {
            for round in rounds {
                lines.push(format!("  {name}  {}", line(round)));
            }
        }
        if let Some(ratio) = self.ratio() {
            let said = self.json();
            let of = |key: &str| said[key].as_f64().unwrap_or_default();
            lines.push(format!(
                "  ratios of the medians: messages a second {ratio:.2}, p99 {:.2}, CPU of the program {:.2}",
                of("p99_ratio"),
                of("cpu_ratio")
            ));
        }
        lines.join("\n")
    }
}

/// One round in one line.
pub fn line(round: &Round) -> String {
    let cpu = round
        .cpu_us
        .iter()
        .map(|(name, us)| format!("{name} {us:.1}"));
    let cpu = cpu.collect::<Vec<_>>().join(", ");
    let mib = round
        .peak_rss_bytes
        .map_or(0.0, |b| approximate(b) / 1_048_576.0);
    format!(
        "{:>8.0} messages/s  p50 {:>7.2} ms  p99 {:>7.2} ms  CPU us a message: {cpu}  peak {mib:.1} MiB",
        round.messages_per_s, round.p50_ms, round.p99_ms
    )
}

fn cpu(rounds: &[Round]) -> Value {
    let names = rounds.iter().flat_map(|r| r.cpu_us.keys().copied());
    let names: std::collections::BTreeSet<_> = names.collect();
    names
        .into_iter()
        .map(|name| {
            let each = rounds.iter().filter_map(|r| r.cpu_us.get(name).copied());
            (name.to_owned(), json!(rounded(median(each), 1)))
        })
        .collect::<serde_json::Map<_, _>>()
        .into()
}

/// The middle of these; the mean of the two in the middle; 0 of none.
pub fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let half = values.len() / 2;
    match (values.get(half), values.len() % 2) {
        (None, _) => 0.0,
        (Some(middle), 1) => *middle,
        (Some(upper), _) => values
            .get(half - 1)
            .map_or(*upper, |lower| (lower + upper) / 2.0),
    }
}

/// The value below which this share (0 to 1) of the samples lies; sorts them.
pub fn percentile(samples: &mut [u64], share: f64) -> u64 {
    samples.sort_unstable();
    let last = samples.len().saturating_sub(1);
    let at = (approximate(last as u64) * share).round() as usize;
    samples.get(at.min(last)).copied().unwrap_or(0)
}

/// A count as a number to calculate with; exact up to 2^53.
pub fn approximate(n: u64) -> f64 {
    n as f64
}

/// Rounded to so many digits behind the point.
pub fn rounded(value: f64, digits: i32) -> f64 {
    let unit = 10f64.powi(digits);
    (value * unit).round() / unit
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_and_percentiles_come_from_the_samples() {
        assert!((median([3.0, 1.0, 2.0].into_iter()) - 2.0).abs() < f64::EPSILON);
        assert!((median([1.0, 2.0].into_iter()) - 1.5).abs() < f64::EPSILON);
        let mut samples: Vec<u64> = (0..=100).rev().collect();
        assert_eq!(percentile(&mut samples, 0.5), 50);
        assert_eq!(percentile(&mut samples, 0.99), 99);
        assert_eq!(percentile(&mut [], 0.5), 0);
    }

    #[test]
    fn the_ratio_is_the_quotient_of_the_medians_and_absent_without_bare() {
        let round = |rate| Round {
            messages_per_s: rate,
            ..Round::default()
        };
        let mut figures = Figures {
            ours: vec![round(5.0), round(7.0), round(6.0)],
            ..Figures::default()
        };
        assert_eq!(figures.json()["ratio"], Value::Null);
        figures.bare = vec![round(8.0)];
        assert_eq!(figures.json()["ratio"], json!(0.75));
    }
}
