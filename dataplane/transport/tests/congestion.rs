//! Flows through a congested port: shares, losses, recovery and accuracy, in virtual time.

use rnic_sim::{Bottleneck, Flows, jain};
use rnic_transport::{Congestion, Mutation, QpType};

const MS: u64 = 1_000_000;

/// Flows, and how far they have come.
struct Run {
    flows: Flows,
    now: u64,
}

impl Run {
    fn new(setup: Bottleneck) -> Self {
        let flows = Flows::new(setup, |_| ());
        Run { flows, now: 0 }
    }

    /// Payload bytes of each flow in the next `nanos`.
    fn go_on(&mut self, nanos: u64) -> Vec<u64> {
        let before = self.flows.delivered().to_vec();
        self.now += nanos;
        self.flows.run_until(self.now);
        let after = self.flows.delivered().iter();
        after.zip(before).map(|(after, before)| after - before).collect()
    }
}

/// Gb/s of payload of all flows together.
fn gbps(shares: &[u64], nanos: u64) -> f64 {
    shares.iter().sum::<u64>() as f64 * 8.0 / nanos as f64
}

#[test]
fn sixty_four_qps_under_loss_share_a_port_fairly_and_recover() {
    /// Milliseconds.
    const RECOVERY: u64 = 10;
    for seed in 1..=3 {
        let mut run = Run::new(Bottleneck::new(seed, 64));
        run.go_on(50 * MS);
        let calm = run.go_on(100 * MS);
        let before = gbps(&calm, 100 * MS);
        run.flows.lose(10);
        let lossy = run.go_on(200 * MS);
        run.flows.lose(0);
        let took = (1..=RECOVERY).find(|_| gbps(&run.go_on(MS), MS) >= 0.9 * before);
        let after = run.go_on(100 * MS);
        println!(
            "seed {seed}: 64 QPs, 10 Gb/s; loss-free {before:.2} Gb/s, Jain {:.4}; 1% loss {:.2} Gb/s, Jain {:.4}; \
             90% of loss-free again within {took:?} ms (bound {RECOVERY} ms), then {:.2} Gb/s, Jain {:.4}; {:?}",
            jain(&calm),
            gbps(&lossy, 200 * MS),
            jain(&lossy),
            gbps(&after, 100 * MS),
            jain(&after),
            run.flows.traffic,
        );
        assert!(
            jain(&calm) >= 0.95 && jain(&lossy) >= 0.95,
            "seed {seed}: not fair"
        );
        assert!(took.is_some(), "seed {seed}: not recovered");
        assert!(
            gbps(&after, 100 * MS) >= 0.9 * before,
            "seed {seed}: not for long"
        );
        assert!(run.flows.traffic.lost > 1_000 && run.flows.traffic.cnps > 1_000);
    }
}

#[test]
fn without_congestion_control_the_same_flows_share_nothing_fairly() {
    let mut setup = Bottleneck::new(1, 64);
    setup.congestion = Congestion::Off;
    let mut run = Run::new(setup);
    run.go_on(50 * MS);
    let shares = run.go_on(100 * MS);
    println!("{:.2} Gb/s, Jain {:.4}", gbps(&shares, 100 * MS), jain(&shares));
    assert!(jain(&shares) < 0.8, "the port is no bottleneck");
}

#[test]
fn flows_come_back_after_a_blackout() {
    for seed in 1..=3 {
        let mut run = Run::new(Bottleneck::new(seed, 64));
        run.go_on(50 * MS);
        let before = gbps(&run.go_on(50 * MS), 50 * MS);
        run.flows.lose(1_000);
        run.go_on(MS);
        assert_eq!(run.go_on(14 * MS), vec![0; 64], "nothing comes through");
        run.flows.lose(0);
        // A retry is due after 4.2 ms.
        let took = (1..=20).find(|_| gbps(&run.go_on(MS), MS) >= 0.9 * before);
        let after = run.go_on(50 * MS);
        println!(
            "seed {seed}: 90% of {before:.2} Gb/s within {took:?} ms after a blackout, then Jain {:.4}",
            jain(&after)
        );
        assert!(took.is_some() && jain(&after) >= 0.95, "seed {seed}");
    }
}

#[test]
fn uc_flows_share_a_port_fairly_by_cnps_alone() {
    let mut setup = Bottleneck::new(5, 16);
    setup.qp_type = QpType::Uc;
    let mut run = Run::new(setup);
    run.go_on(50 * MS);
    let overflowed = run.flows.traffic.overflowed;
    let shares = run.go_on(100 * MS);
    println!(
        "{:.2} Gb/s, Jain {:.4}, {:?}",
        gbps(&shares, 100 * MS),
        jain(&shares),
        run.flows.traffic
    );
    assert!(jain(&shares) >= 0.95);
    assert!(run.flows.traffic.overflowed - overflowed < run.flows.traffic.packets / 1_000);
}

#[test]
fn a_fixed_rate_is_kept_though_timers_come_late() {
    // Wire bytes: the packets of a WRITE of 64 KiB in 64 packets, the first with a RETH.
    let share = f64::from(64 << 10) / f64::from((64 << 10) + 64 * (12 + 50) + 16);
    for rate in [1_250_000, 12_500_000, 125_000_000, 1_000_000_000] {
        for granularity_log2 in [0, 14, 16] {
            let mut setup = Bottleneck::new(7, 1);
            setup.congestion = Congestion::FixedRate { rate };
            setup.granularity_log2 = granularity_log2;
            let mut run = Run::new(setup);
            run.go_on(100 * MS);
            let got = run.go_on(1_000 * MS)[0] as f64 / share;
            let error = got / rate as f64 - 1.0;
            println!(
                "{rate} bytes/s, timers of 2^{granularity_log2} ns: {:+.3}%",
                error * 100.0
            );
            assert!(error.abs() < 0.01, "{rate} bytes a second became {got}");
        }
    }
}

#[test]
fn faults_of_congestion_control_overflow_the_queue() {
    let overflowed = |mutation| {
        let mut flows = Flows::new(Bottleneck::new(3, 16), |qp| qp.mutate(mutation));
        flows.run_until(50 * MS);
        flows.traffic.overflowed
    };
    let sound = overflowed(None);
    for mutation in [Mutation::ForgetCnp, Mutation::IgnoreCnp, Mutation::SendUnpaced] {
        let faulty = overflowed(Some(mutation));
        println!("{mutation:?}: {faulty} packets overflow the queue instead of {sound}");
        assert!(faulty > 2 * sound, "{mutation:?} is not noticed");
    }
}
