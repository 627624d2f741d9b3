//! Congestion control of whole appliances: marks on the wire, CNPs back, and what is counted and captured of it.
use rnic_tests::probe::Plan;
use rnic_tests::{Appliance, PortSetup, Probe, Setup, Turn};
use rnic_trace::{Near, Options, Rule};

/// Two ports wired to each other; what both send is marked now and then, if the ports have congestion control.
fn ports(congestion: &str) -> Setup {
    let port = |number: u32| {
        PortSetup::ring(number).with(&format!(
            "loopback: wire\ncongestion: {congestion}\nfaults: {{ seed: {number}, tx: {{ ecn_mark: 10% }} }}"
        ))
    };
    Setup::new([port(0), port(1)])
}

/// A counter of a port, over both ports.
fn counted(appliance: &Appliance, name: &str) -> u64 {
    let ports = appliance.status().ports;
    ports.iter().map(|port| port.counters[name]).sum()
}

#[test]
fn marks_are_answered_by_cnps_that_are_counted_and_keep_the_rules() {
    let _turn = Turn::take();
    let appliance = Appliance::start(&ports("{ dcqcn: { line_rate: 10Gbps, cnp_interval: 1ms } }"));
    let socket = appliance.socket();
    let plan = Plan {
        size_max: 60_000,
        ..Plan::default()
    };
    Probe::run_pair([(&socket, "rnic0"), (&socket, "rnic1")], &plan);
    let [marked, sent, handled, ignored] = [
        "np_ecn_marked_roce_packets",
        "np_cnp_sent",
        "rp_cnp_handled",
        "rp_cnp_ignored",
    ]
    .map(|name| counted(&appliance, name));
    println!("{marked} marks, {sent} CNPs sent, {handled} handled, {ignored} ignored");
    assert!(marked > 0 && sent > 0 && handled > 0);
    assert!(sent <= marked, "{sent} CNPs about {marked} marks");
    assert!(handled + ignored <= sent);
    for port in ["rnic0", "rnic1"] {
        let file = appliance.dir().join(format!("{port}.pcapng"));
        // Both ports see every mark: it happens where a frame is sent, before it is captured.
        let options = Options {
            near: Near::Everybody,
            cnp_within: Some(1_000_000_000),
            ..Options::default()
        };
        let report = rnic_trace::check_file(&file, &options).expect("a capture");
        let about_cnps = [Rule::CnpCause, Rule::CnpPacing, Rule::CnpMissing];
        let broken: Vec<_> = report
            .violations
            .iter()
            .filter(|v| about_cnps.contains(&v.rule))
            .collect();
        assert!(broken.is_empty(), "{broken:#?}");
    }
    appliance.stop();
}

#[test]
fn without_congestion_control_nothing_can_be_marked_and_nobody_is_told() {
    let _turn = Turn::take();
    let appliance = Appliance::start(&ports("off"));
    let socket = appliance.socket();
    Probe::run_pair([(&socket, "rnic0"), (&socket, "rnic1")], &Plan::default());
    for name in ["np_ecn_marked_roce_packets", "np_cnp_sent", "rp_cnp_handled"] {
        assert_eq!(counted(&appliance, name), 0, "{name}");
    }
    let states = appliance.status().ports;
    assert!(states.iter().all(|port| port.congestion == "off"));
    appliance.stop();
}

#[test]
fn a_fixed_rate_is_shown_with_its_qp() {
    let _turn = Turn::take();
    let appliance = Appliance::start(&ports("{ fixed: 80Mbps }"));
    let context = appliance.open("rnic0");
    let pd = context.alloc_pd().expect("a PD");
    let cq = context.create_cq(4).expect("a CQ");
    let _qp = pd.create_qp(rnic::QpConfig::new(&cq, &cq)).expect("a QP");
    let shown = appliance.ctl_json(&["res", "show", "qp"]);
    let text = shown.to_string();
    assert!(
        text.contains("\"congestion\":\"fixed\"") && text.contains("\"rate_bps\":80000000"),
        "{text}"
    );
    appliance.stop();
}
