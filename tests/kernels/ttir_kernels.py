"""Small kernels as TTIR text, so that tests run where Triton does not. Each returns the text of one module."""


def add(kind="f32", block=64):
    """out = x + y, elementwise with a bounds mask."""
    return f"""
module {{
  tt.func public @add(%x: !tt.ptr<{kind}>, %y: !tt.ptr<{kind}>, %out: !tt.ptr<{kind}>, %n: i32) {{
    %size = arith.constant {block} : i32 loc(#loc1)
    %pid = tt.get_program_id x : i32
    %start = arith.muli %pid, %size : i32
    %lane = tt.make_range {{end = {block} : i32, start = 0 : i32}} : tensor<{block}xi32>
    %0 = tt.splat %start : i32 -> tensor<{block}xi32>
    %at = arith.addi %0, %lane : tensor<{block}xi32>
    %1 = tt.splat %n : i32 -> tensor<{block}xi32>
    %mask = arith.cmpi slt, %at, %1 : tensor<{block}xi32>
    %2 = tt.splat %x : !tt.ptr<{kind}> -> tensor<{block}x!tt.ptr<{kind}>>
    %3 = tt.addptr %2, %at : tensor<{block}x!tt.ptr<{kind}>>, tensor<{block}xi32>
    %a = tt.load %3, %mask : tensor<{block}x!tt.ptr<{kind}>> loc(#loc2)
    %4 = tt.splat %y : !tt.ptr<{kind}> -> tensor<{block}x!tt.ptr<{kind}>>
    %5 = tt.addptr %4, %at : tensor<{block}x!tt.ptr<{kind}>>, tensor<{block}xi32>
    %b = tt.load %5, %mask : tensor<{block}x!tt.ptr<{kind}>> loc(#loc3)
    %c = arith.addf %a, %b : tensor<{block}x{kind}> loc(#loc3)
    %6 = tt.splat %out : !tt.ptr<{kind}> -> tensor<{block}x!tt.ptr<{kind}>>
    %7 = tt.addptr %6, %at : tensor<{block}x!tt.ptr<{kind}>>, tensor<{block}xi32>
    tt.store %7, %c, %mask : tensor<{block}x!tt.ptr<{kind}>> loc(#loc4)
    tt.return
  }}
}}
#loc1 = loc("kernel.py":3:5)
#loc2 = loc("a"("kernel.py":4:9))
#loc3 = loc(callsite("kernel.py":5:9 at "kernel.py":12:1))
#loc4 = loc("kernel.py":6:5)
"""


def matmul(m=16, n=16, k=16, kind="f16", wrap=False, transposed=False, stages=3):
    """c = a @ b with a loop over K: rows and columns masked, or taken modulo M and N as in Triton's tutorial.
    With ``transposed``, b is [N, K] and its tile is transposed before the dot."""
    b_row, b_column = ("tn", "tk") if transposed else ("tk", "tn")
    rows, columns = (n, k) if transposed else (k, n)
    b_mask = "%kn" if not transposed else "%nk"
    limit = "remsi %{0}0, %{0}s" if wrap else "addi %{0}0, %{0}z"
    a_guard = "%ka" if wrap else "%mka"
    b_guard = b_mask if wrap else "%nkb"
    step_row = "%tk1" if not transposed else "%tn1"
    step_column = "%tn1" if not transposed else "%tk1"
    turn = (
        f"%bt = tt.trans %bv {{order = array<i32: 1, 0>}} : tensor<{n}x{k}x{kind}> -> tensor<{k}x{n}x{kind}>"
        if transposed
        else ""
    )
    used = "%bt" if transposed else "%bv"
    return f"""
module {{
  tt.func public @matmul(%a: !tt.ptr<{kind}>, %b: !tt.ptr<{kind}>, %c: !tt.ptr<f32>, %M: i32, %N: i32, %K: i32) {{
    %zero = arith.constant dense<0.000000e+00> : tensor<{m}x{n}xf32>
    %az = arith.constant dense<0.000000e+00> : tensor<{m}x{k}x{kind}>
    %bz = arith.constant dense<0.000000e+00> : tensor<{rows}x{columns}x{kind}>
    %mz = arith.constant dense<0> : tensor<{m}xi32>
    %nz = arith.constant dense<0> : tensor<{n}xi32>
    %kstep = arith.constant dense<{k}> : tensor<{m}x{k}xi32>
    %c0 = arith.constant 0 : i32
    %c1 = arith.constant 1 : i32
    %bm = arith.constant {m} : i32
    %bn = arith.constant {n} : i32
    %bk = arith.constant {k} : i32
    %bk1 = arith.constant {k - 1} : i32
    %pm = tt.get_program_id x : i32
    %pn = tt.get_program_id y : i32
    %mo = arith.muli %pm, %bm : i32
    %no = arith.muli %pn, %bn : i32
    %mr = tt.make_range {{end = {m} : i32, start = 0 : i32}} : tensor<{m}xi32>
    %nr = tt.make_range {{end = {n} : i32, start = 0 : i32}} : tensor<{n}xi32>
    %kr = tt.make_range {{end = {k} : i32, start = 0 : i32}} : tensor<{k}xi32>
    %mb = tt.splat %mo : i32 -> tensor<{m}xi32>
    %nb = tt.splat %no : i32 -> tensor<{n}xi32>
    %m0 = arith.addi %mb, %mr : tensor<{m}xi32>
    %n0 = arith.addi %nb, %nr : tensor<{n}xi32>
    %ms = tt.splat %M : i32 -> tensor<{m}xi32>
    %ns = tt.splat %N : i32 -> tensor<{n}xi32>
    %m1 = arith.{limit.format("m")} : tensor<{m}xi32>
    %n1 = arith.{limit.format("n")} : tensor<{n}xi32>
    %am = tt.expand_dims %m1 {{axis = 1 : i32}} : tensor<{m}xi32> -> tensor<{m}x1xi32>
    %aks = tt.splat %K : i32 -> tensor<{m}x1xi32>
    %amo = arith.muli %am, %aks : tensor<{m}x1xi32>
    %ak = tt.expand_dims %kr {{axis = 0 : i32}} : tensor<{k}xi32> -> tensor<1x{k}xi32>
    %a1 = tt.broadcast %amo : tensor<{m}x1xi32> -> tensor<{m}x{k}xi32>
    %a2 = tt.broadcast %ak : tensor<1x{k}xi32> -> tensor<{m}x{k}xi32>
    %a3 = arith.addi %a1, %a2 : tensor<{m}x{k}xi32>
    %a4 = tt.splat %a : !tt.ptr<{kind}> -> tensor<{m}x{k}x!tt.ptr<{kind}>>
    %ap = tt.addptr %a4, %a3 : tensor<{m}x{k}x!tt.ptr<{kind}>>, tensor<{m}x{k}xi32>
    %row = tt.expand_dims %{"n1" if transposed else "kr"} {{axis = 1 : i32}} : tensor<{rows}xi32> -> tensor<{rows}x1xi32>
    %pitch = tt.splat %{"K" if transposed else "N"} : i32 -> tensor<{rows}x1xi32>
    %rowo = arith.muli %row, %pitch : tensor<{rows}x1xi32>
    %col = tt.expand_dims %{"kr" if transposed else "n1"} {{axis = 0 : i32}} : tensor<{columns}xi32> -> tensor<1x{columns}xi32>
    %b1 = tt.broadcast %rowo : tensor<{rows}x1xi32> -> tensor<{rows}x{columns}xi32>
    %b2 = tt.broadcast %col : tensor<1x{columns}xi32> -> tensor<{rows}x{columns}xi32>
    %b3 = arith.addi %b1, %b2 : tensor<{rows}x{columns}xi32>
    %b4 = tt.splat %b : !tt.ptr<{kind}> -> tensor<{rows}x{columns}x!tt.ptr<{kind}>>
    %bp = tt.addptr %b4, %b3 : tensor<{rows}x{columns}x!tt.ptr<{kind}>>, tensor<{rows}x{columns}xi32>
    %tm1 = tt.expand_dims %m0 {{axis = 1 : i32}} : tensor<{m}xi32> -> tensor<{m}x1xi32>
    %mlim = tt.splat %M : i32 -> tensor<{m}x1xi32>
    %mok = arith.cmpi slt, %tm1, %mlim : tensor<{m}x1xi32>
    %mokk = tt.broadcast %mok : tensor<{m}x1xi1> -> tensor<{m}x{k}xi1>
    %nax = tt.expand_dims %n0 {{axis = {0 if not transposed else 1} : i32}} : tensor<{n}xi32> -> tensor<{f"1x{n}" if not transposed else f"{n}x1"}xi32>
    %nlim = tt.splat %N : i32 -> tensor<{f"1x{n}" if not transposed else f"{n}x1"}xi32>
    %nok = arith.cmpi slt, %nax, %nlim : tensor<{f"1x{n}" if not transposed else f"{n}x1"}xi32>
    %nokk = tt.broadcast %nok : tensor<{f"1x{n}" if not transposed else f"{n}x1"}xi1> -> tensor<{rows}x{columns}xi1>
    %up = arith.addi %K, %bk1 : i32
    %trips = arith.divsi %up, %bk : i32
    %rowstep = arith.muli %{"c1" if transposed else "N"}, %bk : i32
    %out:3 = scf.for %i = %c0 to %trips step %c1 iter_args(%pa = %ap, %pb = %bp, %acc = %zero) -> (tensor<{m}x{k}x!tt.ptr<{kind}>>, tensor<{rows}x{columns}x!tt.ptr<{kind}>>, tensor<{m}x{n}xf32>)  : i32 {{
      %done = arith.muli %i, %bk : i32
      %left = arith.subi %K, %done : i32
      %l1 = tt.splat %left : i32 -> tensor<1x{k}xi32>
      %l2 = arith.cmpi slt, %ak, %l1 : tensor<1x{k}xi32>
      %ka = tt.broadcast %l2 : tensor<1x{k}xi1> -> tensor<{m}x{k}xi1>
      %mka = arith.andi %mokk, %ka : tensor<{m}x{k}xi1>
      %av = tt.load %pa, {a_guard}, %az : tensor<{m}x{k}x!tt.ptr<{kind}>>
      %kb = tt.expand_dims %kr {{axis = {0 if transposed else 1} : i32}} : tensor<{k}xi32> -> tensor<{f"1x{k}" if transposed else f"{k}x1"}xi32>
      %l3 = tt.splat %left : i32 -> tensor<{f"1x{k}" if transposed else f"{k}x1"}xi32>
      %l4 = arith.cmpi slt, %kb, %l3 : tensor<{f"1x{k}" if transposed else f"{k}x1"}xi32>
      {b_mask} = tt.broadcast %l4 : tensor<{f"1x{k}" if transposed else f"{k}x1"}xi1> -> tensor<{rows}x{columns}xi1>
      %nkb = arith.andi {b_mask}, %nokk : tensor<{rows}x{columns}xi1>
      %bv = tt.load %pb, {b_guard}, %bz : tensor<{rows}x{columns}x!tt.ptr<{kind}>>
      {turn}
      %d = tt.dot %av, {used}, %acc, inputPrecision = tf32 : tensor<{m}x{k}x{kind}> * tensor<{k}x{n}x{kind}> -> tensor<{m}x{n}xf32>
      %pa1 = tt.addptr %pa, %kstep : tensor<{m}x{k}x!tt.ptr<{kind}>>, tensor<{m}x{k}xi32>
      %bs = tt.splat %rowstep : i32 -> tensor<{rows}x{columns}xi32>
      %pb1 = tt.addptr %pb, %bs : tensor<{rows}x{columns}x!tt.ptr<{kind}>>, tensor<{rows}x{columns}xi32>
      scf.yield %pa1, %pb1, %d : tensor<{m}x{k}x!tt.ptr<{kind}>>, tensor<{rows}x{columns}x!tt.ptr<{kind}>>, tensor<{m}x{n}xf32>
    }} {{tt.num_stages = {stages} : i32}}
    %cm = arith.muli %tm1, %o0 : tensor<{m}x1xi32>
    %cn = tt.expand_dims %n0 {{axis = 0 : i32}} : tensor<{n}xi32> -> tensor<1x{n}xi32>
    %o0 = tt.splat %N : i32 -> tensor<{m}x1xi32>
    tt.return
  }}
}}
"""
