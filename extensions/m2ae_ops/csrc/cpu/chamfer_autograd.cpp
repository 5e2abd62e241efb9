// The gradient of the fused Chamfer loss in C++. The one declared in Python serves all other devices; on the CPU its overhead is
// a noticeable part of the loss of a batch of patches.
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>

#include "common.h"

namespace m2ae {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using ChosenResult = std::tuple<Tensor, Tensor, Tensor>;

ChosenResult call_chosen(const Tensor& a, const Tensor& b, bool root) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("m2ae::chamfer_chosen", "")
                             .typed<ChosenResult(const Tensor&, const Tensor&, bool)>();
  at::AutoDispatchBelowADInplaceOrView below;
  return op.call(a, b, root);
}

std::tuple<Tensor, Tensor> chosen_gradients(const Tensor& grad, const variable_list& saved, bool root, bool want_a, bool want_b) {
  static const auto op =
      c10::Dispatcher::singleton()
          .findSchemaOrThrow("m2ae::chamfer_chosen_backward", "")
          .typed<std::tuple<Tensor, Tensor>(const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&, bool, bool, bool)>();
  return op.call(grad, saved[0], saved[1], saved[2], saved[3], root, want_a, want_b);
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
  variable_list found = torch::autograd::grad({way_loss(d1, root).add(way_loss(d2, root))}, wanted, {grad}, again, again);
  // A pair with a coordinate that is not finite has no gradient.
  const Tensor finite = a.isfinite().flatten(1).all(1).logical_and(b.isfinite().flatten(1).all(1)).view({-1, 1, 1});
  for (Tensor& one : found) one = at::where(finite, one, one.new_full({}, std::numeric_limits<double>::quiet_NaN()));
  return found;
}

class ChamferChosen : public torch::autograd::Function<ChamferChosen> {
 public:
  static variable_list forward(AutogradContext* ctx, const Tensor& a, const Tensor& b, bool root) {
    auto [losses, i1, i2] = call_chosen(a, b, root);
    ctx->mark_non_differentiable({i1, i2});
    ctx->set_materialize_grads(false);
    ctx->save_for_backward({a, b, i1, i2});
    ctx->saved_data["root"] = root;
    return {losses, i1, i2};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& flows) {
    variable_list out(3);
    if (!flows[0].defined()) return out;
    const auto saved = ctx->get_saved_variables();
    const bool root = ctx->saved_data["root"].toBool(), wanted[] = {ctx->needs_input_grad(0), ctx->needs_input_grad(1)};
    if (!at::GradMode::is_enabled()) {
      auto [grad_a, grad_b] = chosen_gradients(flows[0], saved, root, wanted[0], wanted[1]);
      if (wanted[0]) out[0] = grad_a;
      if (wanted[1]) out[1] = grad_b;
      return out;
    }
    // To be differentiated again, gradients are worked out from the distances.
    variable_list sides;
    for (int side = 0; side < 2; ++side) {
      if (wanted[side]) sides.push_back(saved[side]);
    }
    const auto found = unfused_gradients(flows[0], saved[0], saved[1], root, sides);
    for (size_t side = 0, next = 0; side < 2; ++side) {
      if (wanted[side]) out[side] = found[next++];
    }
    return out;
  }
};

ChosenResult chamfer_chosen_autograd(const Tensor& a, const Tensor& b, bool root) {
  if (!at::GradMode::is_enabled() || !(a.requires_grad() || b.requires_grad())) return call_chosen(a, b, root);
  const auto out = ChamferChosen::apply(a, b, root);
  return {out[0], out[1], out[2]};
}

}  // namespace

TORCH_LIBRARY_IMPL(m2ae, AutogradCPU, m) { m.impl("chamfer_chosen", chamfer_chosen_autograd); }

}  // namespace m2ae
