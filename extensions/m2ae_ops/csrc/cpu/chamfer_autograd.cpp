// The gradient of the fused Chamfer loss in C++. The one declared in Python serves all other devices; on the CPU its overhead is
// a noticeable part of the loss of a batch of patches.
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>

#include "common.h"

namespace m2ae {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using LossResult = std::tuple<Tensor, Tensor, Tensor>;

LossResult call_loss(const Tensor& a, const Tensor& b, bool root, bool want_a, bool want_b) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("m2ae::chamfer_loss", "")
                             .typed<LossResult(const Tensor&, const Tensor&, bool, bool, bool)>();
  at::AutoDispatchBelowADInplaceOrView below;
  return op.call(a, b, root, want_a, want_b);
}

std::tuple<Tensor, Tensor> scale_stored(const Tensor& grad, const Tensor& grad_a, const Tensor& grad_b) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("m2ae::chamfer_loss_backward", "")
                             .typed<std::tuple<Tensor, Tensor>(const Tensor&, const Tensor&, const Tensor&)>();
  return op.call(grad, grad_a, grad_b);
}

// One way's part of the loss, from its squared distances.
Tensor way_loss(const Tensor& sqdist, bool root) {
  return root ? sqdist.clamp_min(kSmallestRoot).sqrt().mean(1).div(2) : sqdist.mean(1);
}

// The gradients through the distances themselves, which can be differentiated any number of times.
variable_list unfused_gradients(const Tensor& grad, const Tensor& a, const Tensor& b, bool root, const variable_list& wanted) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("m2ae::chamfer", "")
                             .typed<std::tuple<Tensor, Tensor, Tensor, Tensor>(const Tensor&, const Tensor&)>();
  const bool again = at::GradMode::is_enabled();
  at::AutoGradMode enable(true);
  const auto [d1, d2, i1, i2] = op.call(a, b);
  return torch::autograd::grad({way_loss(d1, root).add(way_loss(d2, root))}, wanted, {grad}, again, again);
}

class ChamferLoss : public torch::autograd::Function<ChamferLoss> {
 public:
  static variable_list forward(AutogradContext* ctx, const Tensor& a, const Tensor& b, bool root, bool want_a, bool want_b) {
    auto [loss, grad_a, grad_b] = call_loss(a, b, root, want_a, want_b);
    ctx->mark_non_differentiable({grad_a, grad_b});
    ctx->set_materialize_grads(false);
    ctx->save_for_backward({a, b, grad_a, grad_b});
    ctx->saved_data["root"] = root;
    return {loss, grad_a, grad_b};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& flows) {
    variable_list out(5);
    if (!flows[0].defined()) return out;
    const auto saved = ctx->get_saved_variables();
    variable_list wanted;
    bool stored = true;
    for (int side = 0; side < 2; ++side) {
      if (!ctx->needs_input_grad(side)) continue;
      wanted.push_back(saved[side]);
      stored = stored && saved[2 + side].sym_size(0) == saved[side].sym_size(0);
    }
    // Stored gradients are constants; to be differentiated again, they are worked out from the distances.
    if (stored && !at::GradMode::is_enabled()) {
      auto [grad_a, grad_b] = scale_stored(flows[0], saved[2], saved[3]);
      if (ctx->needs_input_grad(0)) out[0] = grad_a.to(saved[0].scalar_type());
      if (ctx->needs_input_grad(1)) out[1] = grad_b.to(saved[1].scalar_type());
      return out;
    }
    const auto found = unfused_gradients(flows[0], saved[0], saved[1], ctx->saved_data["root"].toBool(), wanted);
    for (size_t side = 0, next = 0; side < 2; ++side) {
      if (ctx->needs_input_grad(side)) out[side] = found[next++];
    }
    return out;
  }
};

LossResult chamfer_loss_autograd(const Tensor& a, const Tensor& b, bool root, bool want_a, bool want_b) {
  if (!at::GradMode::is_enabled() || !(a.requires_grad() || b.requires_grad())) return call_loss(a, b, root, want_a, want_b);
  const auto out = ChamferLoss::apply(a, b, root, want_a, want_b);
  return {out[0], out[1], out[2]};
}

}  // namespace

TORCH_LIBRARY_IMPL(m2ae, AutogradCPU, m) { m.impl("chamfer_loss", chamfer_loss_autograd); }

}  // namespace m2ae
