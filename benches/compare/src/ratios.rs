//! Ratios, within each place, and the table of everything.
use crate::{
    Point,
    peers::{Metric, Place},
};

/// Fills in how much better rnic is than each peer.
pub fn fill(points: &mut [Point]) {
    let models: Vec<Point> = points.iter().filter(|p| p.peer == p.beside).cloned().collect();
    for point in points {
        let model = models.iter().find(|model| {
            model.place == point.place
                && model.peer == point.beside
                && model.metric == point.metric
                && model.size == point.size
        });
        point.rnic_is_better_by =
            model.map(|model| rnic_bench::rounded(point.metric.better(model.value, point.value)));
    }
}

/// What the tries of one measurement may differ by before they are marked.
const STEADY: f64 = 1.33;

/// Prints a table of each place and metric.
pub fn print(points: &[Point]) {
    for place in Place::ALL {
        for (metric, unit) in [(Metric::Latency, "us"), (Metric::Bandwidth, "Gbit/s")] {
            let chosen: Vec<&Point> = points
                .iter()
                .filter(|p| p.place == place && p.metric == metric)
                .collect();
            if !chosen.is_empty() {
                println!(
                    "\n{place}: {metric:?} in {unit} (how many times better rnic is); \
                     ~: the tries differ by more than a third"
                );
                table(place, &chosen);
            }
        }
    }
}

fn table(place: Place, points: &[&Point]) {
    let mut sizes: Vec<u64> = points.iter().map(|p| p.size).collect();
    sizes.sort_unstable();
    sizes.dedup();
    print!("{:<29}", "");
    sizes.iter().for_each(|size| print!("{size:>17}"));
    println!();
    for peer in place.peers() {
        print!("{peer:<29}");
        for size in &sizes {
            let point = points.iter().find(|p| p.peer == peer && p.size == *size);
            let cell = point.map_or("-".to_owned(), |point| {
                let ratio = point
                    .rnic_is_better_by
                    .map_or(String::new(), |ratio| format!(" ({ratio})"));
                let unsteady = if steady(point) { "" } else { "~" };
                format!("{}{unsteady}{ratio}", shown(point.value))
            });
            print!("{cell:>17}");
        }
        println!();
    }
}

fn steady(point: &Point) -> bool {
    let tries = point.tries.iter();
    tries.fold(1.0, |most: f64, value| {
        most.max(point.metric.better(point.value, *value))
    }) <= STEADY
}

/// Three digits at least, where it is small.
fn shown(value: f64) -> String {
    match value {
        0.1.. => format!("{value:.2}"),
        _ => format!("{value:.4}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_are_to_the_peers_own_model_in_the_same_place() {
        let point = |place, peer, beside, metric, value| Point {
            place,
            peer,
            metric,
            size: 8,
            value,
            tries: vec![value],
            beside,
            rnic_is_better_by: None,
        };
        let mut points = [
            point(Place::Host, "rnic", "rnic", Metric::Latency, 1.0),
            point(Place::Guest, "rnic", "rnic", Metric::Latency, 10.0),
            point(Place::Guest, "rxe", "rnic", Metric::Latency, 5.0),
            point(Place::Guest, "rnic", "rnic", Metric::Bandwidth, 4.0),
            point(Place::Guest, "rxe", "rnic", Metric::Bandwidth, 2.0),
            point(Place::Guest, "rxe asleep", "rnic asleep", Metric::Latency, 7.0),
        ];
        fill(&mut points);
        let ratios = points.map(|point| point.rnic_is_better_by);
        assert_eq!(
            ratios,
            [Some(1.0), Some(1.0), Some(0.5), Some(1.0), Some(2.0), None]
        );
    }

    #[test]
    fn tries_that_differ_are_told_from_those_that_do_not() {
        let mut point = Point {
            place: Place::Host,
            peer: "rnic",
            metric: Metric::Bandwidth,
            size: 8,
            value: 3.0,
            tries: vec![2.5, 3.0],
            beside: "rnic",
            rnic_is_better_by: None,
        };
        assert!(steady(&point));
        point.tries.push(1.5);
        assert!(!steady(&point));
    }
}
