//! Client processes of one appliance.
use rnic_tests::probe::Plan;
use rnic_tests::{Appliance, Probe, Report, Setup, Turn};

const ALL_MTUS: [u32; 5] = [256, 512, 1024, 2048, 4096];

fn assert_did_all(reports: &[Report; 2], addresses: [&str; 2]) {
    for (report, address) in reports.iter().zip(addresses) {
        assert_eq!(report.mtus, ALL_MTUS);
        assert_eq!(report.gid, address);
        assert!(
            report.messages >= 5 * 2 * 50 && report.bytes > 1_000_000,
            "{report:?}"
        );
    }
}

#[test]
fn two_processes_on_the_laptop_sample_move_every_operation_at_every_path_mtu() {
    let _turn = Turn::take();
    let sample = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/samples/laptop.yaml");
    let appliance = Appliance::start_file(sample.as_ref());
    let socket = appliance.socket();
    let baseline = appliance.counts();
    for (gid_index, addresses) in [(0, ["10.0.0.1", "10.0.0.2"]), (1, ["fd00::1", "fd00::2"])] {
        let plan = Plan {
            gid_index,
            seed: 10 + u64::from(gid_index),
            ..Plan::default()
        };
        let reports = Probe::run_pair([(&socket, "rnic0"), (&socket, "rnic1")], &plan);
        assert_did_all(&reports, addresses);
    }
    assert!(
        appliance.counter("tx_roce") > 1000,
        "the frames went over the wire path"
    );
    let clean = rnic_tests::poll_until(std::time::Duration::from_secs(10), || {
        (appliance.counts() == baseline).then_some(())
    });
    assert!(
        clean.is_some(),
        "{:?} instead of {baseline:?}",
        appliance.counts()
    );
    appliance.stop();
}

#[test]
fn two_processes_on_one_port_reach_each_other_without_frames() {
    let _turn = Turn::take();
    let appliance = Appliance::start(&Setup::back_to_back().with_ports("loopback: direct"));
    let socket = appliance.socket();
    let reports = Probe::run_pair([(&socket, "rnic0"), (&socket, "rnic0")], &Plan::default());
    assert_did_all(&reports, ["10.0.0.1", "10.0.0.1"]);
    assert_eq!(appliance.counter("tx_roce"), 0);
    assert!(appliance.counter("direct_packets") > 1000);
    appliance.stop();
}

#[test]
fn two_poll_cores_hand_frames_to_the_core_of_their_qp() {
    let _turn = Turn::take();
    let appliance = Appliance::start(&Setup::back_to_back().cores(2).with_ports("loopback: wire"));
    let socket = appliance.socket();
    let reports = Probe::run_pair([(&socket, "rnic0"), (&socket, "rnic1")], &Plan::default());
    assert_did_all(&reports, ["10.0.0.1", "10.0.0.2"]);
    appliance.stop();
}

#[test]
fn every_kind_of_fault_on_the_wire_is_repaired() {
    let _turn = Turn::take();
    let faults = "loopback: wire\n\
        faults: { seed: 3, rx: { drop: 2%, duplicate: 2%, reorder: 2%, corrupt: 2%, delay: 50us, ecn_mark: 5% } }";
    let appliance = Appliance::start(&Setup::back_to_back().with_ports(faults));
    let socket = appliance.socket();
    let plan = Plan {
        size_max: 9000,
        seed: 4,
        ..Plan::default()
    };
    let reports = Probe::run_pair([(&socket, "rnic0"), (&socket, "rnic1")], &plan);
    assert_eq!(reports[0].mtus, ALL_MTUS);
    for counter in ["retransmitted", "icrc_errors", "duplicate", "out_of_order"] {
        assert!(appliance.counter(counter) > 0, "{counter} stayed 0");
    }
    appliance.stop();
}
