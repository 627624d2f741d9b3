//! The pingpong example over what several QPs share, on a whole appliance.
use std::process::{Command, Output, Stdio};

use rnic_tests::{Appliance, Setup, Turn, program};

fn side(appliance: &Appliance, device: &str, options: &[&str]) -> Command {
    let example = program("rnicd").with_file_name("examples").join("pingpong");
    assert!(example.exists(), "run `cargo build -p rnic --examples` first");
    let mut side = Command::new(&example);
    side.arg("--socket").arg(appliance.socket());
    side.args(["-d", device, "-n", "200", "-e"]).args(options);
    side.stdout(Stdio::piped()).stderr(Stdio::piped());
    side
}

fn succeeded(output: &Output) {
    let said = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text).into_owned());
    assert!(
        output.status.success() && said[0].contains("200 iters in "),
        "{said:?}"
    );
}

#[test]
fn pingpong_plays_over_a_shared_receive_queue() {
    let _turn = Turn::take();
    let appliance = Appliance::start(&Setup::back_to_back().cores(2).with_ports("loopback: wire"));
    for (port, qps, size, depth) in [("28521", "1", "9000", "2"), ("28522", "16", "4096", "40")] {
        let options = ["-t", "srq", "-p", port, "-q", qps, "-s", size, "-r", depth];
        let server = side(&appliance, "rnic1", &options).spawn().unwrap();
        let client = side(&appliance, "rnic0", &options)
            .arg("localhost")
            .output()
            .unwrap();
        succeeded(&client);
        succeeded(&server.wait_with_output().unwrap());
    }
    appliance.stop();
}

#[test]
fn pingpong_over_xrc_reaches_each_client_by_the_connection_of_another() {
    const CLIENTS: usize = 3;
    let _turn = Turn::take();
    let appliance = Appliance::start(&Setup::back_to_back().cores(2).with_ports("loopback: wire"));
    let options = ["-t", "xsrq", "-p", "28523", "-s", "9000"];
    let mut server = side(&appliance, "rnic1", &options);
    let server = server.args(["--clients", &CLIENTS.to_string()]).spawn().unwrap();
    let clients: Vec<_> = (0..CLIENTS)
        .map(|_| {
            side(&appliance, "rnic0", &options)
                .arg("localhost")
                .spawn()
                .unwrap()
        })
        .collect();
    for client in clients {
        succeeded(&client.wait_with_output().unwrap());
    }
    succeeded(&server.wait_with_output().unwrap());
    appliance.stop();
}
