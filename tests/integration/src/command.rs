//! Running programs: the daemon and its tools beside the test, and the system's own.
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;

/// Folder of the programs that Cargo built beside the running test: `target/debug`.
fn beside() -> PathBuf {
    let test = std::env::current_exe().expect("a test knows its own path");
    let mut dir = test.parent().expect("a program stands in a folder").to_path_buf();
    if dir.ends_with("deps") {
        dir.pop();
    }
    dir
}

/// Folder with `rnicd` and `rnicctl`: `$RNIC_BIN_DIR`, else where Cargo builds them.
///
/// `cargo test -p rnic-tests` does not build the programs of another package, and an old daemon would be worse
/// than none; so Cargo is asked once per test process.
fn daemon_dir() -> &'static PathBuf {
    static DIR: OnceLock<PathBuf> = OnceLock::new();
    DIR.get_or_init(|| {
        if let Some(dir) = std::env::var_os("RNIC_BIN_DIR") {
            return dir.into();
        }
        let dir = beside();
        let (Some(cargo), Some(profile)) = (std::env::var_os("CARGO"), dir.file_name()) else {
            return dir;
        };
        let mut build = Command::new(cargo);
        build.args(["build", "--quiet", "--package", "rnic-control", "--bins"]);
        if profile == "release" {
            build.arg("--release");
        }
        build
            .arg("--target-dir")
            .arg(dir.parent().expect("it has a parent"));
        build.current_dir(env!("CARGO_MANIFEST_DIR"));
        let output = build
            .output()
            .expect("Cargo started this test and can be started again");
        assert!(
            output.status.success(),
            "building rnicd: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        dir
    })
}

/// Path of `rnicd`, `rnicctl` or `rnic-probe`.
///
/// # Panics
/// When it has not been built, saying how to.
pub fn program(name: &str) -> PathBuf {
    let (dir, package) = match name {
        "rnic-probe" => (beside(), "rnic-tests"),
        _ => (daemon_dir().clone(), "rnic-control"),
    };
    let path = dir.join(name);
    assert!(
        path.exists(),
        "{} is not there: run `cargo build -p {package} --bins` first, or set RNIC_BIN_DIR",
        path.display()
    );
    path
}

/// Runs a program of the system, of which an error is the test's.
///
/// # Panics
/// When it fails, with what it wrote.
pub fn run(program: &str, args: &[&str]) -> String {
    let output = output(program, args);
    assert!(
        output.status.success(),
        "{program} {}: {}\n{}",
        args.join(" "),
        String::from_utf8_lossy(&output.stderr),
        String::from_utf8_lossy(&output.stdout)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Runs a program of the system.
///
/// # Panics
/// When it cannot be started.
pub fn output(program: &str, args: &[&str]) -> Output {
    Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|e| panic!("{program} cannot be run ({e}); `make deps` installs what tests need"))
}

/// Path of `rnicd`.
///
/// # Panics
/// When it has not been built.
pub fn rnicd() -> PathBuf {
    program("rnicd")
}
