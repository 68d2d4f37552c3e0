//! The traffic of [`tests::probe`], in a process of its own: it can be in any network namespace and cgroup.

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let Err(error) = tests::probe::run(&arguments) {
        eprintln!("error: {error:#}");
        std::process::exit(2);
    }
}
