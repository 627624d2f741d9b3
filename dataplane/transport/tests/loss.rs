//! Goodput of 1 MiB WRITEs over random loss, in virtual time: go-back-N and selective retransmission.

use rnic_sim::{Bottleneck, Flows};
use rnic_transport::{Congestion, DcqcnSettings, Mutation};
use rnic_wire::Mtu;

const MS: u64 = 1_000_000;
/// Lost packets in ten thousand.
const LOSS: [u32; 6] = [0, 10, 50, 100, 200, 500];

#[derive(Copy, Clone)]
struct Link {
    selective: bool,
    congestion: Congestion,
    /// Nanoseconds of a round trip through an empty queue.
    round_trip: u64,
    mutation: Option<Mutation>,
}

/// One flow through a port of 10 Gb/s, which loses by chance and has room for a whole window.
fn goodput(seed: u64, link: Link, loss: u32) -> f64 {
    let setup = Bottleneck {
        selective: link.selective,
        congestion: link.congestion,
        mtu: Mtu::M4096,
        message: 1 << 20,
        delay: link.round_trip / 4,
        queue: 8 << 20,
        timeout: 14,
        ..Bottleneck::new(seed, 1)
    };
    let mut flows = Flows::new(setup, |qp| qp.mutate(link.mutation));
    flows.run_until(20 * MS);
    let before = flows.delivered()[0];
    flows.lose_of(loss, 10_000);
    flows.run_until(420 * MS);
    (flows.delivered()[0] - before) as f64 * 8.0 / (400 * MS) as f64
}

/// Gb/s for each loss rate, averaged over seeds.
fn row(link: Link) -> Vec<f64> {
    let mean = |loss| (1..=3).map(|seed| goodput(seed, link, loss)).sum::<f64>() / 3.0;
    LOSS.into_iter().map(mean).collect()
}

fn print(name: &str, row: &[f64]) {
    let cells: Vec<String> = row
        .iter()
        .map(|gbps| format!("{gbps:6.3} ({:3.0} %)", 100.0 * gbps / row[0]))
        .collect();
    println!("{name}: {}", cells.join(" | "));
}

#[test]
fn at_one_percent_loss_selective_retransmission_keeps_half_of_the_goodput_and_go_back_n_does_not() {
    let rates = LOSS.map(|loss| format!("{} %", f64::from(loss) / 100.0));
    println!(
        "Gb/s of 1 MiB WRITEs over 10 Gb/s, MTU 4096, loss {}",
        rates.join(", ")
    );
    let plain = Link {
        selective: false,
        congestion: Congestion::Off,
        round_trip: 20_000,
        mutation: None,
    };
    for round_trip in [8_000, 20_000, 100_000, 400_000] {
        let go_back = row(Link { round_trip, ..plain });
        let selective = row(Link {
            round_trip,
            selective: true,
            ..plain
        });
        print(&format!("go-back-N, {} us", round_trip / 1_000), &go_back);
        print(&format!("selective, {} us", round_trip / 1_000), &selective);
        assert!(
            selective[0] > 0.97 * go_back[0],
            "without loss it costs something"
        );
        assert!(
            selective[3] >= 0.5 * selective[0],
            "{round_trip} ns: less than half"
        );
        let rising = LOSS.iter().enumerate().skip(1);
        for (at, loss) in rising {
            assert!(
                selective[at] > go_back[at],
                "{round_trip} ns, loss {loss}: no better"
            );
        }
    }
    let congestion = Congestion::Dcqcn(DcqcnSettings::for_line_rate(1_250_000_000));
    print("go-back-N with DCQCN, 20 us", &row(Link { congestion, ..plain }));
    let selective = Link {
        congestion,
        selective: true,
        ..plain
    };
    print("selective with DCQCN, 20 us", &row(selective));
}

#[test]
fn retransmissions_that_are_lost_and_never_probed_for_are_noticed() {
    let link = |mutation| Link {
        selective: true,
        congestion: Congestion::Off,
        round_trip: 400_000,
        mutation,
    };
    let (sound, faulty) = (
        goodput(1, link(None), 500),
        goodput(1, link(Some(Mutation::NeverProbe)), 500),
    );
    println!("{sound:.3} Gb/s, {faulty:.3} without probes");
    assert!(faulty < 0.7 * sound);
}
