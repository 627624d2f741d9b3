//! Captures that an appliance writes, as another program reads them.
use std::path::Path;

use rnic_tests::probe::Plan;
use rnic_tests::{Appliance, Probe, Turn};
use rnic_wire::{Frame, Kind, MAX_FRAME_HEADER_LEN, TableCrc, classify, verify_icrc};

#[path = "../../../dataplane/wire/tests/common/mod.rs"]
mod common;
use common::{pcap, tshark};

#[test]
fn tshark_reads_every_captured_frame_as_our_codec_does() {
    let _turn = Turn::take();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("session.pcapng");
    let sample = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/samples/laptop.yaml");
    let yaml = std::fs::read_to_string(sample).unwrap();
    let yaml = yaml.replace("${RNIC_CAPTURE:-}", file.to_str().unwrap());
    assert!(
        yaml.contains("session.pcapng"),
        "the sample has a place for a capture"
    );
    let config = dir.path().join("rnicd.yaml");
    std::fs::write(&config, yaml).unwrap();
    let appliance = Appliance::start_file(&config);
    let socket = appliance.socket();
    for gid_index in [0, 1] {
        let plan = Plan {
            gid_index,
            size_max: 3000,
            mtus: vec![256, 1024, 4096],
            ..Plan::default()
        };
        Probe::run_pair([(&socket, "rnic0"), (&socket, "rnic1")], &plan);
    }
    let frames = appliance.counter("tx_roce");
    appliance.stop();
    let report = rnic_trace::check_file(&file, &rnic_trace::Options::default()).expect("a capture");
    assert!(report.violations.is_empty(), "{:#?}", report.violations);
    assert_eq!(report.roce as u64, frames, "frames checked, and sent");

    let plain = dir.path().join("plain.pcap");
    let to_pcap = [
        "-r",
        file.to_str().unwrap(),
        "-F",
        "pcap",
        "-w",
        plain.to_str().unwrap(),
    ];
    let converted = std::process::Command::new("tshark")
        .args(to_pcap)
        .output()
        .expect("tshark is installed");
    assert!(
        converted.status.success(),
        "{}",
        String::from_utf8_lossy(&converted.stderr)
    );
    mask_lookalikes(&plain);
    let compared = tshark::assert_agrees(&plain) as u64;
    // The port at one end saw the frames of both, each once.
    assert_eq!(compared, frames, "frames in the capture, and sent");
}

/// tshark takes any payload whose third and fourth byte are zero, as with one byte and its pad, for an encapsulated
/// Ethernet type, and what follows for a broken packet of that type. Such payloads are replaced, their headers kept.
fn mask_lookalikes(file: &Path) {
    let mut frames = pcap::read(file);
    for bytes in &mut frames {
        let Kind::Roce(frame) = classify(bytes, None) else {
            continue;
        };
        assert!(verify_icrc(&TableCrc, frame.datagram()), "{frame}");
        if looks_like_ethernet(&frame) {
            let payload = vec![0xFF; frame.payload().len()];
            let mut out = vec![0; MAX_FRAME_HEADER_LEN + payload.len() + 8];
            let len = frame
                .repr()
                .emit_frame(&TableCrc, &payload, &mut out)
                .expect("a frame can be emitted again");
            assert_eq!(len, bytes.len());
            out.truncate(len);
            *bytes = out;
        }
    }
    pcap::write(file, &frames);
}

fn looks_like_ethernet(frame: &Frame<'_>) -> bool {
    let payload = frame.payload();
    !payload.is_empty() && (2..4).all(|at| payload.get(at).is_none_or(|byte| *byte == 0))
}
