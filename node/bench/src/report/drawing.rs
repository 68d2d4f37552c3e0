//! Drawings as SVG.

use std::fmt::{self, Write as _};

use super::{class, escaped};
use crate::results::{Arm, Experiment, Metric};
use crate::stats::Estimate;

/// Sizes, in the drawing's own units: it is scaled to the page.
const WIDTH: f64 = 720.0;
const NAMES: f64 = 150.0;
const ROW: f64 = 34.0;
const FOOT: f64 = 34.0;
const MARGIN: f64 = 24.0;

/// About so many marks are on the axis.
const MARKS: f64 = 6.0;

/// Each arm's rounds as ratios to the base, with the interval of their median; nothing where there is nothing to draw.
pub(super) fn ratios(experiment: &Experiment, base: &Arm, metric: Metric) -> Option<String> {
    let of_base = base.samples.get(&metric)?;
    let rows: Vec<Row<'_>> = experiment
        .arms
        .iter()
        .filter(|arm| arm.name != base.name)
        .filter_map(|arm| {
            let pairs = arm.samples.get(&metric)?.iter().zip(of_base);
            let rounds: Vec<f64> = pairs
                .filter(|(_, base)| **base > 0.0)
                .map(|(own, base)| own / base)
                .collect();
            let judged = experiment.judged(arm, base, metric)?;
            Some(Row {
                arm,
                rounds,
                ratio: judged.ratio,
                class: class(judged.verdict, metric),
            })
        })
        .collect();
    if rows.is_empty() {
        return None;
    }
    let band = experiment.again(metric).map_or(0.0, |again| again.reach(1.0));
    let mut drawn = String::new();
    draw(&mut drawn, &rows, band, &Axis::around(&rows, band)).expect("invariant: text takes all");
    Some(drawn)
}

struct Row<'a> {
    arm: &'a Arm,
    rounds: Vec<f64>,
    ratio: Estimate,
    class: &'static str,
}

/// From a ratio to its place.
struct Axis {
    low: f64,
    high: f64,
    step: f64,
}

impl Axis {
    /// Holds 1, all intervals, and nine of ten rounds: one that was disturbed shall not squeeze the others.
    fn around(rows: &[Row<'_>], band: f64) -> Self {
        let (mut low, mut high) = (1.0 - band, 1.0 + band);
        for row in rows {
            let outer = |share| crate::stats::quantile(&row.rounds, share).unwrap_or(1.0);
            low = low.min(row.ratio.low).min(outer(0.05));
            high = high.max(row.ratio.high).max(outer(0.95));
        }
        let room = ((high - low) * 0.05).max(0.005);
        let (low, high) = (low - room, high + room);
        let step = round_step((high - low) / MARKS);
        Self { low, high, step }
    }

    fn place(&self, ratio: f64) -> f64 {
        let share = (ratio.clamp(self.low, self.high) - self.low) / (self.high - self.low);
        NAMES + share * (WIDTH - NAMES - MARGIN)
    }

    fn marks(&self) -> impl Iterator<Item = f64> + '_ {
        let first = (self.low / self.step).ceil() as i64;
        let last = (self.high / self.step).floor() as i64;
        (first..=last).map(|number| number as f64 * self.step)
    }
}

/// The next of 1, 2, 5, 10, … of a power of ten.
fn round_step(about: f64) -> f64 {
    let power = 10f64.powf(about.log10().floor());
    let of_power = [1.0, 2.0, 5.0, 10.0]
        .into_iter()
        .find(|step| step * power >= about);
    of_power.unwrap_or(10.0) * power
}

fn draw(svg: &mut String, rows: &[Row<'_>], band: f64, axis: &Axis) -> fmt::Result {
    let bottom = ROW * rows.len() as f64 + 8.0;
    write!(
        svg,
        "<svg viewBox=\"0 0 {WIDTH} {}\" role=\"img\" aria-label=\"ratios of {} arms\">",
        bottom + FOOT,
        rows.len()
    )?;
    if band > 0.0 {
        let (left, right) = (axis.place(1.0 - band), axis.place(1.0 + band));
        write!(
            svg,
            "<rect x=\"{left:.1}\" y=\"0\" width=\"{:.1}\" height=\"{bottom:.1}\" fill=\"var(--line)\" opacity=\"0.6\"/>",
            (right - left).max(1.0)
        )?;
    }
    let digits = if axis.step < 0.01 { 3 } else { 2 };
    for mark in axis.marks() {
        let x = axis.place(mark);
        let is_one = (mark - 1.0).abs() < axis.step / 2.0;
        let color = if is_one { "var(--ink)" } else { "var(--line)" };
        write!(
            svg,
            "<line x1=\"{x:.1}\" y1=\"0\" x2=\"{x:.1}\" y2=\"{bottom:.1}\" stroke=\"{color}\"/>\
             <text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{mark:.digits$}</text>",
            bottom + 18.0
        )?;
    }
    for (number, row) in rows.iter().enumerate() {
        draw_row(svg, row, ROW * number as f64 + ROW / 2.0 + 4.0, axis)?;
    }
    write!(svg, "</svg>")
}

fn draw_row(svg: &mut String, row: &Row<'_>, y: f64, axis: &Axis) -> fmt::Result {
    write!(
        svg,
        "<text x=\"0\" y=\"{:.1}\">{}</text>",
        y + 4.0,
        escaped(&row.arm.name)
    )?;
    for (number, ratio) in row.rounds.iter().enumerate() {
        // Rounds that are alike do not hide each other.
        let beside = y + 7.0 * ((number % 3) as f64 - 1.0);
        let x = axis.place(*ratio);
        write!(
            svg,
            "<circle cx=\"{x:.1}\" cy=\"{beside:.1}\" r=\"2.5\" fill=\"var(--dot)\" opacity=\"0.45\"/>"
        )?;
    }
    let [low, middle, high] =
        [row.ratio.low, row.ratio.middle, row.ratio.high].map(|ratio| axis.place(ratio));
    let color = format!("var(--{})", row.class);
    write!(
        svg,
        "<line x1=\"{low:.1}\" y1=\"{y:.1}\" x2=\"{high:.1}\" y2=\"{y:.1}\" stroke=\"{color}\" stroke-width=\"4\"/>\
         <circle cx=\"{middle:.1}\" cy=\"{y:.1}\" r=\"5\" fill=\"{color}\"/>"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_round_numbers_within_the_axis() {
        for (about, step) in [
            (0.011, 0.02),
            (0.02, 0.02),
            (0.3, 0.5),
            (0.51, 1.0),
            (1.0, 1.0),
            (7.0, 10.0),
        ] {
            assert!((round_step(about) - step).abs() < 1e-9, "{about}");
        }
        let axis = Axis {
            low: 0.97,
            high: 1.21,
            step: 0.05,
        };
        let marks: Vec<String> = axis.marks().map(|mark| format!("{mark:.2}")).collect();
        assert_eq!(marks, ["1.00", "1.05", "1.10", "1.15", "1.20"]);
        assert_eq!((axis.place(0.0), axis.place(9.0)), (NAMES, WIDTH - MARGIN));
    }
}
