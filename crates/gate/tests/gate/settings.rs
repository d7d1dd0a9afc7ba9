//! The settings of a policy, as they act on a machine.

use domain::restriction::Desired::Restricted;
use gate_protocol::{Reply, Request};
use policy::baseline::Builder;

use crate::support::*;

gate_test! {
    fn dual_use_programs_of_packages_run_unless_they_are_removed() {
        let mut machine = Machine::new();
        let programs = machine.programs();
        // Known by the name that the package gave it, whatever it is called where it is executed.
        let (gdb, link) = (machine.folder.join("gdb"), machine.folder.join("harmless"));
        install(&gdb, &program("gdb"));
        std::fs::hard_link(&gdb, &link).unwrap();
        let mut builder = Builder::default();
        assert!(builder.add(digest(&program("gdb")), gdb.as_os_str().as_encoded_bytes()));
        assert!(builder.add(digest(&program("packaged")), programs.packaged.as_os_str().as_encoded_bytes()));
        let mut baseline = Vec::new();
        builder.finish(&mut baseline).unwrap();
        assert_eq!(machine.send_baseline(&baseline), Reply::Done);
        machine.obeyed(Restricted);
        assert_eq!((run(&gdb), run(&link)), (Execution::Ran, Execution::Ran));
        machine.store_policy_with(&[("dualUse", "remove")]);
        machine.obeyed(Restricted);
        assert_eq!((run(&link), run(&gdb)), (Execution::Refused, Execution::Refused));
        let denial = until("the denial is there", || {
            let Reply::Denials { denials, .. } = machine.ask(&Request::Denials) else { panic!() };
            denials.into_iter().find(|denial| denial.path == gdb.to_str().unwrap())
        });
        assert_eq!(denial.cause, "dual-use");
        let path = gdb.to_str().unwrap().to_owned();
        let Reply::Explanation(explanation) = machine.ask(&Request::Explain { path }) else { panic!() };
        assert_eq!((explanation.cause.as_str(), explanation.allowed), ("dual-use", false));
    }
}
