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


def ragged_sum(block=16):
    """out[pid] = sum of the first lengths[pid] elements of row pid: the trip count is data, and differs."""
    return f"""
module {{
  tt.func public @ragged(%x: !tt.ptr<f32>, %lengths: !tt.ptr<i32>, %out: !tt.ptr<f32>, %pitch: i32) {{
    %zero = arith.constant dense<0.000000e+00> : tensor<{block}xf32>
    %c0 = arith.constant 0 : i32
    %size = arith.constant {block} : i32
    %pid = tt.get_program_id x : i32
    %0 = tt.addptr %lengths, %pid : !tt.ptr<i32>, i32
    %n = tt.load %0 : !tt.ptr<i32> loc("ragged.py":3:5)
    %lane = tt.make_range {{end = {block} : i32, start = 0 : i32}} : tensor<{block}xi32>
    %row = arith.muli %pid, %pitch : i32
    %rowp = tt.addptr %x, %row : !tt.ptr<f32>, i32
    %total = scf.for %i = %c0 to %n step %size iter_args(%acc = %zero) -> (tensor<{block}xf32>)  : i32 {{
      %1 = tt.splat %i : i32 -> tensor<{block}xi32>
      %at = arith.addi %1, %lane : tensor<{block}xi32>
      %2 = tt.splat %n : i32 -> tensor<{block}xi32>
      %mask = arith.cmpi slt, %at, %2 : tensor<{block}xi32>
      %3 = tt.splat %rowp : !tt.ptr<f32> -> tensor<{block}x!tt.ptr<f32>>
      %4 = tt.addptr %3, %at : tensor<{block}x!tt.ptr<f32>>, tensor<{block}xi32>
      %v = tt.load %4, %mask, %zero : tensor<{block}x!tt.ptr<f32>> loc("ragged.py":6:9)
      %s = arith.addf %acc, %v : tensor<{block}xf32> loc("ragged.py":7:9)
      scf.yield %s : tensor<{block}xf32>
    }} {{tt.num_stages = 2 : i32}}
    %sum = "tt.reduce"(%total) <{{axis = 0 : i32}}> ({{
    ^bb0(%l: f32, %r: f32):
      %5 = arith.addf %l, %r : f32
      tt.reduce.return %5 : f32
    }}) : (tensor<{block}xf32>) -> f32 loc("ragged.py":8:5)
    %6 = tt.addptr %out, %pid : !tt.ptr<f32>, i32
    tt.store %6, %sum : !tt.ptr<f32> loc("ragged.py":9:5)
    tt.return
  }}
}}
"""


def branches():
    """Returns early from program n on; x[pid] = 2x where positive, x - 1 elsewhere."""
    return """
module {
  tt.func public @branches(%x: !tt.ptr<f32>, %n: i32) {
    %one = arith.constant 1.000000e+00 : f32
    %two = arith.constant 2.000000e+00 : f32
    %zero = arith.constant 0.000000e+00 : f32
    %pid = tt.get_program_id x : i32
    %0 = arith.cmpi sge, %pid, %n : i32
    cf.cond_br %0, ^bb1, ^bb2
  ^bb1:  // pred: ^bb0
    tt.return
  ^bb2:  // pred: ^bb0
    %p = tt.addptr %x, %pid : !tt.ptr<f32>, i32
    %v = tt.load %p : !tt.ptr<f32> loc("branches.py":5:5)
    %1 = arith.cmpf ogt, %v, %zero : f32
    %2 = scf.if %1 -> (f32) {
      %v_3 = arith.mulf %v, %two : f32
      scf.yield %v_3 : f32
    } else {
      %v_3 = arith.subf %v, %one : f32
      scf.yield %v_3 : f32
    }
    tt.store %p, %2 : !tt.ptr<f32> loc("branches.py":10:5)
    tt.return
  }
}
"""


def collatz():
    """steps[pid] = length of the Collatz sequence of x[pid], by a while loop that each program leaves on its own."""
    return """
module {
  tt.func public @collatz(%x: !tt.ptr<i32>, %steps: !tt.ptr<i32>) {
    %c0 = arith.constant 0 : i32
    %c1 = arith.constant 1 : i32
    %c2 = arith.constant 2 : i32
    %c3 = arith.constant 3 : i32
    %pid = tt.get_program_id x : i32
    %0 = tt.addptr %x, %pid : !tt.ptr<i32>, i32
    %v = tt.load %0 : !tt.ptr<i32>
    %r:2 = scf.while (%n = %v, %count = %c0) : (i32, i32) -> (i32, i32) {
      %go = arith.cmpi sgt, %n, %c1 : i32
      scf.condition(%go) %n, %count : i32, i32
    } do {
    ^bb0(%n: i32, %count: i32):
      %odd = arith.remsi %n, %c2 : i32
      %is_odd = arith.cmpi eq, %odd, %c1 : i32
      %next = scf.if %is_odd -> (i32) {
        %t = arith.muli %n, %c3 : i32
        %u = arith.addi %t, %c1 : i32
        scf.yield %u : i32
      } else {
        %t = arith.divsi %n, %c2 : i32
        scf.yield %t : i32
      }
      %more = arith.addi %count, %c1 : i32
      scf.yield %next, %more : i32, i32
    }
    %1 = tt.addptr %steps, %pid : !tt.ptr<i32>, i32
    tt.store %1, %r#1 : !tt.ptr<i32>
    tt.return
  }
}
"""


def gather_rows(rows=8, columns=16):
    """out[pid, i, :] = table[index[pid, i], :]: addresses that come from data."""
    shape = f"{rows}x{columns}"
    return f"""
module {{
  tt.func public @gather(%table: !tt.ptr<f32>, %index: !tt.ptr<i32>, %out: !tt.ptr<f32>, %pitch: i32) {{
    %c = arith.constant {rows} : i32
    %k = arith.constant {columns} : i32
    %pid = tt.get_program_id x : i32
    %i = tt.make_range {{end = {rows} : i32, start = 0 : i32}} : tensor<{rows}xi32>
    %j = tt.make_range {{end = {columns} : i32, start = 0 : i32}} : tensor<{columns}xi32>
    %0 = arith.muli %pid, %c : i32
    %1 = tt.splat %0 : i32 -> tensor<{rows}xi32>
    %at = arith.addi %1, %i : tensor<{rows}xi32>
    %2 = tt.splat %index : !tt.ptr<i32> -> tensor<{rows}x!tt.ptr<i32>>
    %3 = tt.addptr %2, %at : tensor<{rows}x!tt.ptr<i32>>, tensor<{rows}xi32>
    %row = tt.load %3 : tensor<{rows}x!tt.ptr<i32>> loc("gather.py":4:5)
    %4 = tt.expand_dims %row {{axis = 1 : i32}} : tensor<{rows}xi32> -> tensor<{rows}x1xi32>
    %5 = tt.splat %pitch : i32 -> tensor<{rows}x1xi32>
    %6 = arith.muli %4, %5 : tensor<{rows}x1xi32>
    %7 = tt.expand_dims %j {{axis = 0 : i32}} : tensor<{columns}xi32> -> tensor<1x{columns}xi32>
    %8 = tt.broadcast %6 : tensor<{rows}x1xi32> -> tensor<{shape}xi32>
    %9 = tt.broadcast %7 : tensor<1x{columns}xi32> -> tensor<{shape}xi32>
    %10 = arith.addi %8, %9 : tensor<{shape}xi32>
    %11 = tt.splat %table : !tt.ptr<f32> -> tensor<{shape}x!tt.ptr<f32>>
    %12 = tt.addptr %11, %10 : tensor<{shape}x!tt.ptr<f32>>, tensor<{shape}xi32>
    %v = tt.load %12 : tensor<{shape}x!tt.ptr<f32>> loc("gather.py":6:5)
    %13 = tt.expand_dims %at {{axis = 1 : i32}} : tensor<{rows}xi32> -> tensor<{rows}x1xi32>
    %14 = tt.splat %k : i32 -> tensor<{rows}x1xi32>
    %15 = arith.muli %13, %14 : tensor<{rows}x1xi32>
    %16 = tt.broadcast %15 : tensor<{rows}x1xi32> -> tensor<{shape}xi32>
    %17 = arith.addi %16, %9 : tensor<{shape}xi32>
    %18 = tt.splat %out : !tt.ptr<f32> -> tensor<{shape}x!tt.ptr<f32>>
    %19 = tt.addptr %18, %17 : tensor<{shape}x!tt.ptr<f32>>, tensor<{shape}xi32>
    tt.store %19, %v : tensor<{shape}x!tt.ptr<f32>> loc("gather.py":7:5)
    tt.return
  }}
}}
"""


def combine(kind, block, region, results, name="tt.reduce", attributes="axis = 0 : i32"):
    """out = a reduction (or scan) of x with its indices; ``region`` works on %a, %i (left) and %b, %j (right)."""
    out = f"tensor<{block}x{kind}>, tensor<{block}xi32>" if name == "tt.scan" else f"{kind}, i32"
    end = "tt.scan.return" if name == "tt.scan" else "tt.reduce.return"
    pointers = f"tensor<{block}x!tt.ptr<{{}}>>"
    store = (
        f"""%o = tt.splat %out : !tt.ptr<{kind}> -> {pointers.format(kind)}
    %op = tt.addptr %o, %at : {pointers.format(kind)}, tensor<{block}xi32>
    %w = tt.splat %where : !tt.ptr<i32> -> {pointers.format("i32")}
    %wp = tt.addptr %w, %at : {pointers.format("i32")}, tensor<{block}xi32>
    tt.store %op, %r#0 : {pointers.format(kind)}
    tt.store %wp, %r#1 : {pointers.format("i32")}"""
        if name == "tt.scan"
        else f"""%op = tt.addptr %out, %pid : !tt.ptr<{kind}>, i32
    %wp = tt.addptr %where, %pid : !tt.ptr<i32>, i32
    tt.store %op, %r#0 : !tt.ptr<{kind}>
    tt.store %wp, %r#1 : !tt.ptr<i32>"""
    )
    return f"""
module {{
  tt.func public @combine(%x: !tt.ptr<{kind}>, %out: !tt.ptr<{kind}>, %where: !tt.ptr<i32>) {{
    %size = arith.constant {block} : i32
    %pid = tt.get_program_id x : i32
    %0 = arith.muli %pid, %size : i32
    %lane = tt.make_range {{end = {block} : i32, start = 0 : i32}} : tensor<{block}xi32>
    %1 = tt.splat %0 : i32 -> tensor<{block}xi32>
    %at = arith.addi %1, %lane : tensor<{block}xi32>
    %2 = tt.splat %x : !tt.ptr<{kind}> -> {pointers.format(kind)}
    %3 = tt.addptr %2, %at : {pointers.format(kind)}, tensor<{block}xi32>
    %v = tt.load %3 : {pointers.format(kind)}
    %r:2 = "{name}"(%v, %lane) <{{{attributes}}}> ({{
    ^bb0(%a: {kind}, %i: i32, %b: {kind}, %j: i32):
{region}
      {end} {results} : {kind}, i32
    }}) : (tensor<{block}x{kind}>, tensor<{block}xi32>) -> ({out})
    {store}
    tt.return
  }}
}}
"""


def ticket():
    """Each program takes a number by an atomic add and writes it to out[pid]; then adds x[pid] to the total."""
    return """
module {
  tt.func public @ticket(%counter: !tt.ptr<i32>, %x: !tt.ptr<f32>, %total: !tt.ptr<f32>, %out: !tt.ptr<i32>) {
    %c1 = arith.constant 1 : i32
    %yes = arith.constant true
    %pid = tt.get_program_id x : i32
    %mine = tt.atomic_rmw add, acq_rel, gpu, %counter, %c1, %yes : (!tt.ptr<i32>, i32, i1) -> i32
    %0 = tt.addptr %out, %pid : !tt.ptr<i32>, i32
    tt.store %0, %mine : !tt.ptr<i32>
    %1 = tt.addptr %x, %pid : !tt.ptr<f32>, i32
    %v = tt.load %1 : !tt.ptr<f32>
    %2 = tt.atomic_rmw fadd, relaxed, gpu, %total, %v, %yes : (!tt.ptr<f32>, f32, i1) -> f32
    tt.return
  }
}
"""


def locked():
    """total = total*2 + x[pid], under a lock: only right if programs run one after another, in order."""
    return """
module {
  tt.func public @locked(%lock: !tt.ptr<i32>, %x: !tt.ptr<f32>, %total: !tt.ptr<f32>) {
    %c0 = arith.constant 0 : i32
    %c1 = arith.constant 1 : i32
    %yes = arith.constant true
    %two = arith.constant 2.000000e+00 : f32
    %pid = tt.get_program_id x : i32
    scf.while : () -> () {
      %old = tt.atomic_cas acq_rel, gpu, %lock, %c0, %c1 : (!tt.ptr<i32>, i32, i32) -> i32
      %held = arith.cmpi eq, %old, %c1 : i32
      scf.condition(%held)
    } do {
      scf.yield
    }
    %0 = tt.addptr %x, %pid : !tt.ptr<f32>, i32
    %v = tt.load %0 : !tt.ptr<f32>
    %t = tt.load %total : !tt.ptr<f32>
    %1 = arith.mulf %t, %two : f32
    %2 = arith.addf %1, %v : f32
    tt.store %total, %2 : !tt.ptr<f32>
    ttg.barrier all
    %3 = tt.atomic_rmw exch, acq_rel, gpu, %lock, %c0, %yes : (!tt.ptr<i32>, i32, i1) -> i32
    tt.return
  }
}
"""


def triangle(block=16):
    """out[i, j] = x[i, j] where j <= i, else 0: a mask that no product of axes can say."""
    shape = f"{block}x{block}"
    return f"""
module {{
  tt.func public @triangle(%x: !tt.ptr<f32>, %out: !tt.ptr<f32>) {{
    %zero = arith.constant dense<0.000000e+00> : tensor<{shape}xf32>
    %r = tt.make_range {{end = {block} : i32, start = 0 : i32}} : tensor<{block}xi32>
    %i = tt.expand_dims %r {{axis = 1 : i32}} : tensor<{block}xi32> -> tensor<{block}x1xi32>
    %j = tt.expand_dims %r {{axis = 0 : i32}} : tensor<{block}xi32> -> tensor<1x{block}xi32>
    %ii = tt.broadcast %i : tensor<{block}x1xi32> -> tensor<{shape}xi32>
    %jj = tt.broadcast %j : tensor<1x{block}xi32> -> tensor<{shape}xi32>
    %mask = arith.cmpi sle, %jj, %ii : tensor<{shape}xi32>
    %pitch = arith.constant dense<{block}> : tensor<{shape}xi32>
    %0 = arith.muli %ii, %pitch : tensor<{shape}xi32>
    %at = arith.addi %0, %jj : tensor<{shape}xi32>
    %1 = tt.splat %x : !tt.ptr<f32> -> tensor<{shape}x!tt.ptr<f32>>
    %2 = tt.addptr %1, %at : tensor<{shape}x!tt.ptr<f32>>, tensor<{shape}xi32>
    %v = tt.load %2, %mask, %zero : tensor<{shape}x!tt.ptr<f32>>
    %3 = tt.splat %out : !tt.ptr<f32> -> tensor<{shape}x!tt.ptr<f32>>
    %4 = tt.addptr %3, %at : tensor<{shape}x!tt.ptr<f32>>, tensor<{shape}xi32>
    tt.store %4, %v : tensor<{shape}x!tt.ptr<f32>>
    tt.return
  }}
}}
"""
