//! The plot: latency and bandwidth over message size, both axes logarithmic; a row for each place.
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
    peers::{Metric, Place},
};

/// Of a row.
const SIZE: (u32, u32) = (1280, 560);

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// Draws what there is.
pub fn draw(path: &Path, points: &[Point]) -> anyhow::Result<()> {
    let places: Vec<Place> = Place::ALL
        .into_iter()
        .filter(|place| points.iter().any(|p| p.place == *place))
        .collect();
    let rows = places.len().max(1);
    let root = SVGBackend::new(path, (SIZE.0, SIZE.1 * rows as u32)).into_drawing_area();
    root.fill(&WHITE).map_err(failed)?;
    for (row, place) in root.split_evenly((rows, 1)).iter().zip(places) {
        let (left, right) = row.split_horizontally(SIZE.0 / 2);
        chart(&left, points, place, Metric::Latency)?;
        chart(&right, points, place, Metric::Bandwidth)?;
    }
    root.present().map_err(failed)
}

fn chart(area: &Area<'_>, points: &[Point], place: Place, metric: Metric) -> anyhow::Result<()> {
    let chosen: Vec<&Point> = points
        .iter()
        .filter(|p| p.place == place && p.metric == metric && p.size > 0 && p.value > 0.0)
        .collect();
    let (what, legend) = match metric {
        Metric::Latency => ("half a round trip, microseconds", SeriesLabelPosition::UpperLeft),
        Metric::Bandwidth => ("bandwidth, Gbit/s", SeriesLabelPosition::LowerRight),
    };
    let caption = format!("{place}: {what}");
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
    for (i, peer) in place.peers().into_iter().enumerate() {
        let own = chosen.iter().filter(|p| p.peer == peer);
        let line: Vec<(f64, f64)> = own.map(|p| (p.size as f64, p.value)).collect();
        if line.is_empty() {
            continue;
        }
        let style = Palette99::pick(i).stroke_width(2);
        chart
            .draw_series(LineSeries::new(line.iter().copied(), style))
            .map_err(failed)?
            .label(peer)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], style));
        let dots = PointSeries::of_element(line, 3, style.filled(), &|at, size, style| {
            EmptyElement::at(at) + Circle::new((0, 0), size, style)
        });
        chart.draw_series(dots).map_err(failed)?;
    }
    chart
        .configure_series_labels()
        .position(legend)
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
    fn every_peer_that_was_measured_is_in_the_plot_of_its_place() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("plot.svg");
        let peers = Place::Host.peers();
        let point = |place: Place, peer, metric, size, value| Point {
            place,
            peer,
            metric,
            size,
            value,
            tries: vec![value],
            beside: peer,
            rnic_is_better_by: None,
        };
        let host = peers[..2].iter().flat_map(|peer| {
            [
                (Metric::Latency, 64),
                (Metric::Bandwidth, 64),
                (Metric::Latency, 4096),
            ]
            .map(|(metric, size)| point(Place::Host, *peer, metric, size, 1.5))
        });
        let mut points: Vec<Point> = host.collect();
        let drawn = |points: &[Point]| {
            draw(&path, points).unwrap();
            std::fs::read_to_string(&path).unwrap()
        };
        let svg = drawn(&points);
        assert!(svg.contains(peers[0]) && svg.contains(peers[1]));
        assert!(!svg.contains(peers[2]), "nothing was measured of it");
        assert!(!svg.contains("guest:"));
        let rxe = Place::Guest.peers()[3];
        points.push(point(Place::Guest, rxe, Metric::Latency, 8, 20.0));
        let svg = drawn(&points);
        assert!(svg.contains("host:") && svg.contains("guest:") && svg.contains(rxe));
    }
}
