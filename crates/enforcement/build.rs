//! Compiles the BPF programs: one source, once for each way of hanging it into the kernel.

use std::env;
use std::path::PathBuf;
use std::process::Command;

fn main() {
    if let Err(message) = build() {
        println!("cargo::error={message}");
    }
}

fn build() -> Result<(), String> {
    let variable = |name: &str| env::var(name).map_err(|error| format!("{name}: {error}"));
    let sources = PathBuf::from(variable("CARGO_MANIFEST_DIR")?).join("bpf");
    let out = PathBuf::from(variable("OUT_DIR")?);
    // libbpf's own headers, of the version that loads the programs.
    let libbpf = variable("DEP_BPF_INCLUDE")?;
    // What pt_regs looks like; no program here reads one, but the header asks.
    let machine = match variable("CARGO_CFG_TARGET_ARCH")?.as_str() {
        "x86_64" => "x86",
        "aarch64" => "arm64",
        other => return Err(format!("the BPF programs are not known to work on {other}")),
    };
    println!("cargo::rerun-if-changed={}", sources.display());
    for (tier, name) in [(1, "lsm.bpf.o"), (2, "fmod_ret.bpf.o")] {
        let object = out.join(name);
        let mut clang = Command::new("clang");
        clang
            .args(["-target", "bpf", "-mcpu=v3", "-O2", "-g", "-Wall", "-Wextra", "-Werror"])
            .args(["-Wno-unused-parameter", "-Wno-sign-compare", "-Wno-missing-field-initializers"])
            // Paths of this machine do not belong into the object.
            .arg(format!("-fdebug-prefix-map={}=.", sources.display()))
            .args([format!("-DTIER={tier}"), format!("-D__TARGET_ARCH_{machine}"), format!("-I{libbpf}")])
            .arg("-c")
            .arg(sources.join("cordon.bpf.c"))
            .arg("-o")
            .arg(&object);
        run(&mut clang, "clang")?;
        // Only DWARF goes: what the kernel and the loader read stays.
        run(Command::new("llvm-strip").arg("-g").arg(&object), "llvm")?;
    }
    Ok(())
}

fn run(command: &mut Command, package: &str) -> Result<(), String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.output().map_err(|error| {
        format!("{program} is needed to compile the BPF programs (apt-get install {package}): {error}")
    })?;
    if output.status.success() {
        return Ok(());
    }
    // One line each: cargo shows no more of a message.
    for line in String::from_utf8_lossy(&output.stderr).lines() {
        println!("cargo::warning={line}");
    }
    Err(format!("{program}: {}", output.status))
}
