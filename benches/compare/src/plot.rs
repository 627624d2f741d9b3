//! The plot: latency and bandwidth over message size, both axes logarithmic.
use std::path::Path;

use anyhow::anyhow;
use plotters::{
    coord::Shift,
    prelude::{
        ChartBuilder, Circle, DrawingArea, EmptyElement, IntoDrawingArea, IntoLogRange, LineSeries,
        PathElement, SVGBackend, SeriesLabelPosition, WHITE,
    },
    series::PointSeries,
    style::{Color, Palette, Palette99},
};

use crate::{
    Point,
    peers::{Metric, PEERS},
};

const SIZE: (u32, u32) = (1280, 560);

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// Draws both charts side by side.
pub fn draw(path: &Path, points: &[Point]) -> anyhow::Result<()> {
    let root = SVGBackend::new(path, SIZE).into_drawing_area();
    root.fill(&WHITE).map_err(failed)?;
    let (left, right) = root.split_horizontally(SIZE.0 / 2);
    chart(&left, points, Metric::Latency, "half a round trip, microseconds")?;
    chart(&right, points, Metric::Bandwidth, "bandwidth, Gbit/s")?;
    root.present().map_err(failed)
}

fn chart(area: &Area<'_>, points: &[Point], metric: Metric, caption: &str) -> anyhow::Result<()> {
    let chosen: Vec<&Point> = points
        .iter()
        .filter(|p| p.metric == metric && p.size > 0 && p.value > 0.0)
        .collect();
    let range = |of: fn(&Point) -> f64| {
        let values = chosen.iter().map(|p| of(p));
        let (low, high) = values.fold((f64::MAX, f64::MIN), |(low, high), v| (low.min(v), high.max(v)));
        (low / 1.5)..(high * 1.5)
    };
    if chosen.is_empty() {
        return Ok(());
    }
    let mut chart = ChartBuilder::on(area)
        .caption(caption, ("sans-serif", 18))
        .margin(12)
        .x_label_area_size(36)
        .y_label_area_size(60)
        .build_cartesian_2d(
            range(|p| p.size as f64).log_scale(),
            range(|p| p.value).log_scale(),
        )
        .map_err(failed)?;
    chart
        .configure_mesh()
        .x_desc("message size, bytes")
        .x_label_formatter(&|bytes| short(*bytes))
        .y_label_formatter(&|value| format!("{value}"))
        .draw()
        .map_err(failed)?;
    for (i, peer) in PEERS.iter().enumerate() {
        let own = chosen.iter().filter(|p| p.peer == peer.name);
        let line: Vec<(f64, f64)> = own.map(|p| (p.size as f64, p.value)).collect();
        if line.is_empty() {
            continue;
        }
        let style = Palette99::pick(i).stroke_width(2);
        chart
            .draw_series(LineSeries::new(line.iter().copied(), style))
            .map_err(failed)?
            .label(peer.name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], style));
        let dots = PointSeries::of_element(line, 3, style.filled(), &|at, size, style| {
            EmptyElement::at(at) + Circle::new((0, 0), size, style)
        });
        chart.draw_series(dots).map_err(failed)?;
    }
    let place = match metric {
        Metric::Latency => SeriesLabelPosition::UpperLeft,
        Metric::Bandwidth => SeriesLabelPosition::LowerRight,
    };
    chart
        .configure_series_labels()
        .position(place)
        .background_style(WHITE.mix(0.8))
        .border_style(plotters::style::BLACK.mix(0.3))
        .draw()
        .map_err(failed)
}

/// 65536 as 64K.
fn short(bytes: f64) -> String {
    let bytes = bytes.round() as u64;
    match bytes {
        1_048_576.. => format!("{}M", bytes >> 20),
        1024.. => format!("{}K", bytes >> 10),
        _ => bytes.to_string(),
    }
}

fn failed(error: impl std::fmt::Display) -> anyhow::Error {
    anyhow!("{error}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_peer_that_was_measured_is_in_the_plot() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("plot.svg");
        let point = |peer, metric, size, value| Point {
            peer,
            metric,
            size,
            value,
            rnic_is_better_by: None,
        };
        let points: Vec<Point> = PEERS[..2]
            .iter()
            .flat_map(|peer| {
                [Metric::Latency, Metric::Bandwidth]
                    .map(|metric| point(peer.name, metric, 64, 1.5))
                    .into_iter()
                    .chain([point(peer.name, Metric::Latency, 4096, 3.0)])
            })
            .collect();
        draw(&path, &points).unwrap();
        let svg = std::fs::read_to_string(&path).unwrap();
        assert!(svg.contains(PEERS[0].name) && svg.contains(PEERS[1].name));
        assert!(!svg.contains(PEERS[2].name), "nothing was measured of it");
    }
}
