//! A series of numbers as text.

/// Columns of a plot.
const WIDE: usize = 72;
/// Rows of it.
const HIGH: usize = 8;

/// Draws a series from 0 to its largest value; each column shows the largest sample that falls in it.
pub fn plot(name: &str, series: &[f64]) -> String {
    let columns = columns(series);
    let top = columns.iter().copied().fold(0.0, f64::max);
    let mut lines = vec![format!("{name} (0 to {})", short(top))];
    for row in (0..HIGH).rev() {
        let above = row as f64 / HIGH as f64 * top;
        let line: String = columns
            .iter()
            .map(|value| if *value > above { '#' } else { ' ' })
            .collect();
        lines.push(format!("  |{}", line.trim_end()));
    }
    lines.push(format!("  +{}", "-".repeat(columns.len())));
    lines.join("\n")
}

/// At most so many numbers as a plot is wide: each the largest of its part.
pub fn columns(series: &[f64]) -> Vec<f64> {
    let wide = series.len().min(WIDE);
    (0..wide)
        .map(|n| {
            let (from, to) = (n * series.len() / wide, (n + 1) * series.len() / wide);
            let part = series.get(from..to).unwrap_or_default();
            let most = part.iter().copied().fold(0.0, f64::max);
            (most * 10.0).round() / 10.0
        })
        .collect()
}

fn short(value: f64) -> String {
    match value {
        v if v >= 100.0 => format!("{v:.0}"),
        v => format!("{v:.1}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plot_shows_its_range_and_every_peak() {
        let mut series = vec![1.0; 500];
        series[321] = 8.0;
        let drawn = plot("rows", &series);
        let lines: Vec<&str> = drawn.lines().collect();
        assert_eq!(lines[0], "rows (0 to 8.0)");
        assert_eq!(lines.len(), HIGH + 2);
        assert_eq!(lines[1].matches('#').count(), 1, "{drawn}");
        assert_eq!(lines[HIGH].matches('#').count(), WIDE, "{drawn}");
        assert!(plot("nothing", &[]).starts_with("nothing (0 to 0.0)"));
    }
}
